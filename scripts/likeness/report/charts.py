"""Line charts as inline SVG: no script, no font, colours from the page's own style, so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from likeness.report.gather import Checkpoint, Point

WIDTH, HEIGHT = 420.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 34.0


@dataclass(frozen=True)
class Axes:
    """Ranges of a chart, and how values become places."""

    x_max: float
    y_min: float
    y_max: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / (self.x_max or 1)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.y_max - value) / ((self.y_max - self.y_min) or 1)


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


def number(value: float) -> str:
    return f"{value:.4g}"


def axes_of(curves: Mapping[str, Sequence[Point]]) -> Axes:
    points = [point for points in curves.values() for point in points]
    values = [value for point in points for value in point.estimate[:3] if value is not None]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
    return Axes(max(point.total_steps for point in points) or 1, low - margin, high + margin)


def draw_curves(curves: Mapping[str, Sequence[Point]], chosen: Checkpoint | None, title: str) -> str:
    """One chart: a line with its interval a variant, the base as a dashed level, the chosen checkpoint ringed."""
    if not any(curves.values()):
        return ""
    axes = axes_of(curves)
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)} over steps" class="chart">'
    ]
    parts += grid(axes)
    variants = [name for name in curves if name != "base"]
    for place, name in enumerate(variants):
        parts += line(curves[name], axes, place % 6)
    for point in curves.get("base", [])[:1]:
        y = axes.y(point.estimate.value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="base"><title>base {number(point.estimate.value)}</title></line>'
        )
    for points in curves.values():
        for point in points:
            if point.checkpoint == chosen:
                parts.append(
                    f'<circle cx="{axes.x(point.total_steps):.1f}" cy="{axes.y(point.estimate.value):.1f}" r="7" class="chosen"/>'
                )
    return "".join([*parts, "</svg>"])


def grid(axes: Axes) -> list[str]:
    """Grid lines with their numbers."""
    parts = []
    for value in ticks(axes.y_min, axes.y_max):
        y = axes.y(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in ticks(0, axes.x_max):
        x = axes.x(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(value)}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">optimizer steps</text>'
    )
    return parts


def line(points: Sequence[Point], axes: Axes, colour: int) -> list[str]:
    """The interval band, the line and its points."""
    lows = [(point.total_steps, point.estimate.low) for point in points if point.estimate.low is not None]
    highs = [(point.total_steps, point.estimate.high) for point in points if point.estimate.high is not None]
    band = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in [*highs, *reversed(lows)] if y is not None)
    path = " ".join(f"{axes.x(point.total_steps):.1f},{axes.y(point.estimate.value):.1f}" for point in points)
    parts = [f'<polygon points="{band}" class="band c{colour}"/>'] if len(lows) > 1 else []
    parts.append(f'<polyline points="{path}" class="line c{colour}"/>')
    for point in points:
        variant, phase, step = point.checkpoint
        label = f"{variant} {phase} step {step}: {number(point.estimate.value)}"
        parts.append(
            f'<circle cx="{axes.x(point.total_steps):.1f}" cy="{axes.y(point.estimate.value):.1f}" r="3" class="dot c{colour}"><title>{escape(label)}</title></circle>'
        )
    return parts
