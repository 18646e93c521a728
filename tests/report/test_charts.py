"""Charts: places by closed form, ticks by properties, and charts of one point or of equal values."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from tests.report.reading import Page

from likeness.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Curve, Dot, draw, ticks
from likeness.report.numbers import Measured, Number, rounded


def dot(x: float, value: float, low: float | None = None, high: float | None = None, ringed: bool = False) -> Dot:
    parts = [None if one is None else Number(one, (("metric", "m"),)) for one in (value, low, high)]
    assert parts[0] is not None
    return Dot(x, Measured(parts[0], parts[1], parts[2]), f"at {x:g}", ringed)


def circles(svg: Markup, kind: str) -> list[tuple[float, float]]:
    return [
        (float(one.attributes["cx"]), float(one.attributes["cy"]))
        for one in Page(svg).elements
        if one.tag == "circle" and one.attributes["class"].startswith(kind)
    ]


def test_points_lie_where_their_numbers_are() -> None:
    svg = draw(Chart("m", "steps", [Curve("a", [dot(0, 0.0), dot(50, 0.5, ringed=True), dot(100, 1.0)])], x_from=0))
    found = circles(svg, "dot")
    assert [x for x, _ in found] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert abs(found[0][1] + found[2][1] - 2 * found[1][1]) < 0.21
    assert found[0][1] > found[1][1] > found[2][1] >= TOP
    assert circles(svg, "chosen") == [found[1]]


def test_intervals_stay_inside_the_frame() -> None:
    svg = draw(Chart("m", "steps", [Curve("a", [dot(1, 0.5, -1, 2), dot(2, 0.6, -2, 3)])]))
    band = re.search(r'<polygon points="([^"]+)"', svg)
    assert band
    ys = [float(point.split(",")[1]) for point in band.group(1).split()]
    assert len(ys) == 4
    assert min(ys) >= TOP
    assert max(ys) <= HEIGHT


def test_one_point_and_equal_values_draw() -> None:
    for dots in ([dot(10, 0.5)], [dot(10, 1.0), dot(20, 1.0)], [dot(0, 0.0)]):
        svg = draw(Chart("m", "steps", [Curve("a", dots)], x_from=0))
        assert len(circles(svg, "dot")) == len(dots)
        assert "nan" not in svg


def test_nothing_to_draw_is_nothing() -> None:
    assert draw(Chart("m", "steps", [Curve("a", [])])) == ""


def test_words_are_escaped() -> None:
    svg = draw(Chart("<m>", "a & b", [Curve("a", [dot(1, 0.5)])], marks=[(0.5, "<phase>"), (1.0, "x")], x_from=0))
    assert "<m>" not in svg
    assert "&lt;phase&gt;" in svg


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert len(found) <= 6
    assert all(
        low - 1e-6 * span - 1e-9 * abs(low) <= tick <= low + span * (1 + 1e-6) + 1e-9 * abs(low) for tick in found
    )
    assert found == sorted(found)


@given(st.floats(-1e5, 1e5))
def test_rounding_keeps_about_three_digits(value: float) -> None:
    tolerance = max(0.006 * abs(value), 0.0005) if abs(value) >= 0.01 else 0.06 * abs(value)
    assert abs(float(rounded(value)) - value) <= tolerance + 1e-12
