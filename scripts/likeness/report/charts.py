"""Line charts as inline SVG: no script, no font, colours from the page's own style, so that light and dark both work.

Each point carries its number's whereabouts, and a title that a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from likeness.report.numbers import Measured, rounded

WIDTH, HEIGHT = 380.0, 226.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 14.0, 40.0
COLOURS = 6


@dataclass(frozen=True)
class Dot:
    """One point: where it lies, its number, and what its title says before the number."""

    x: float
    measured: Measured
    label: str
    ringed: bool = False

    @property
    def y(self) -> float:
        return self.measured.value.value


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `colour` is its place among the colours, where that is not its place in the chart."""

    name: str
    dots: Sequence[Dot]
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart's content; `level` is the bare base's, `marks` name places on the x axis, `x_from` is its left end,
    `x_ticks` its numbers where they are not round ones."""

    title: str
    x_title: str
    curves: Sequence[Curve]
    level: Measured | None = None
    marks: Sequence[tuple[float, str]] = ()
    x_from: float | None = None
    x_ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Axes:
    """Ranges of a chart, and how values become places."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float
    width: float = field(default=WIDTH - LEFT - RIGHT, init=False)
    height: float = field(default=HEIGHT - TOP - BOTTOM, init=False)

    def x(self, value: float) -> float:
        return LEFT + self.width * (value - self.x_min) / ((self.x_max - self.x_min) or 1)

    def y(self, value: float) -> float:
        return TOP + self.height * (self.y_max - value) / ((self.y_max - self.y_min) or 1)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that divide a range into about `wanted` parts; both ends may lie outside of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def axes_of(chart: Chart) -> Axes:
    """Ranges that hold every point and interval, with some air above and below."""
    dots = [dot for curve in chart.curves for dot in curve.dots]
    means = [dot.measured for dot in dots] + ([chart.level] if chart.level else [])
    values = [part.value for mean in means for part in (mean.value, mean.low, mean.high) if part is not None]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
    xs = [dot.x for dot in dots]
    x_from = min(xs) if chart.x_from is None else chart.x_from
    return Axes(x_from, max(*xs, x_from + 1e-9), low - margin, high + margin)


def draw(chart: Chart) -> Markup:
    """One chart as SVG; empty where there is no point."""
    if not any(curve.dots for curve in chart.curves):
        return Markup("")
    axes = axes_of(chart)
    parts = [
        Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}, over {}" class="chart">').format(
            WIDTH, HEIGHT, chart.title, chart.x_title
        ),
        *grid(axes, chart.x_title, chart.x_ticks),
        *marks(axes, chart.marks),
        *level(axes, chart.level),
    ]
    for place, curve in enumerate(chart.curves):
        parts += line(curve, axes, (place if curve.colour is None else curve.colour) % COLOURS)
    return Markup("").join([*parts, Markup("</svg>")])


def grid(axes: Axes, x_title: str, x_ticks: Sequence[float]) -> list[Markup]:
    """Grid lines with their numbers."""
    parts = []
    for value in ticks(axes.y_min, axes.y_max):
        y = axes.y(value)
        parts.append(
            Markup('<line x1="{:g}" x2="{:g}" y1="{:.1f}" y2="{:.1f}" class="grid"/>').format(LEFT, WIDTH - RIGHT, y, y)
        )
        parts.append(
            Markup('<text x="{:g}" y="{:.1f}" class="end">{:g}</text>').format(LEFT - 7, y + 4, round(value, 9))
        )
    for value in x_ticks or ticks(axes.x_min, axes.x_max):
        parts.append(
            Markup('<text x="{:.1f}" y="{:g}" class="mid">{:g}</text>').format(
                axes.x(value), HEIGHT - BOTTOM + 17, round(value, 9)
            )
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text x="{:g}" y="{:g}" class="mid">{}</text>').format(middle, HEIGHT - 5, x_title))
    return parts


def marks(axes: Axes, named: Sequence[tuple[float, str]]) -> list[Markup]:
    """A thin upright line with a name where something begins; names that would touch the one before are left out."""
    parts, free_from = [], 0.0
    for value, name in named:
        if not axes.x_min <= value < axes.x_max:
            continue
        x = axes.x(value)
        if value > axes.x_min:
            parts.append(
                Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:g}" y2="{:g}" class="mark"/>').format(
                    x, x, TOP, HEIGHT - BOTTOM
                )
            )
        if x >= free_from:
            shown = name if len(name) <= 12 else f"{name[:11]}…"
            parts.append(Markup('<text x="{:.1f}" y="{:g}" class="mark">{}</text>').format(x + 4, TOP + 8, shown))
            free_from = x + 8 + 7 * len(shown)
    return parts


def level(axes: Axes, base: Measured | None) -> list[Markup]:
    """The bare base as a dashed level."""
    if base is None:
        return []
    y = axes.y(base.value.value)
    return [
        Markup(
            '<line x1="{:g}" x2="{:g}" y1="{:.1f}" y2="{:.1f}" class="base"{}><title>base: {}</title></line>'
        ).format(LEFT, WIDTH - RIGHT, y, y, base.value.attributes(), base.value.text)
    ]


def line(curve: Curve, axes: Axes, colour: int) -> list[Markup]:
    """The interval band, the line, its points, and a ring around the chosen one."""
    banded = [dot for dot in curve.dots if dot.measured.low is not None and dot.measured.high is not None]
    highs = [f"{axes.x(dot.x):.1f},{axes.y(dot.measured.high.value):.1f}" for dot in banded if dot.measured.high]
    lows = [f"{axes.x(dot.x):.1f},{axes.y(dot.measured.low.value):.1f}" for dot in banded if dot.measured.low]
    path = " ".join(f"{axes.x(dot.x):.1f},{axes.y(dot.y):.1f}" for dot in curve.dots)
    parts = []
    if len(banded) > 1:
        parts.append(
            Markup('<polygon points="{}" class="band c{}"/>').format(" ".join([*highs, *reversed(lows)]), colour)
        )
    parts.append(Markup('<polyline points="{}" class="line c{}"/>').format(path, colour))
    for dot in curve.dots:
        x, y = f"{axes.x(dot.x):.1f}", f"{axes.y(dot.y):.1f}"
        if dot.ringed:
            parts.append(Markup('<circle cx="{}" cy="{}" r="7.5" class="chosen"/>').format(x, y))
        parts.append(
            Markup('<circle cx="{}" cy="{}" r="3.4" class="dot c{}"{}><title>{}: {}</title></circle>').format(
                x, y, colour, dot.measured.value.attributes(), dot.label, rounded(dot.y)
            )
        )
    return parts
