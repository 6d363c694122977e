"""Line plots as SVG: inside a page, whose colours they take, or as files of their own."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import NamedTuple

from streamliner.format import number
from streamliner.report.stylesheet import DARK, FIGURE_STYLE, LIGHT, NUM_COLOURS

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 88, 16, 12, 44  # margins around the plot area
Scale = Callable[[float], float]  # from a value to its pixel


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    parts: str  # SVG elements; "" if there is nothing to draw
    size: tuple[int, int]  # width and height in pixels
    names: tuple[str, ...]  # of the series, for the legend
    caption: str
    values: str  # the numbers in words, for readers who cannot see the picture

    @property
    def description(self) -> str:
        """The caption, then the values."""
        return f"{self.caption} {self.values}".strip()

    def as_html(self) -> str:
        """An HTML element with the picture, its legend and its caption."""
        width, height = self.size
        keys = "".join(
            f'<li><span class="key s{i % NUM_COLOURS}"></span>{escape(name)}</li>' for i, name in enumerate(self.names)
        )
        legend = f'<ul class="legend">{keys}</ul>' if len(self.names) > 1 else ""
        return (
            f'<figure><svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
            f'aria-label="{escape(self.description)}">{self.parts}</svg>{legend}'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )

    def as_svg(self) -> str:
        """The content of an SVG file, with the legend and both colour schemes in it."""
        (width, height), legend, x = self.size, "", 0
        for index, name in enumerate(self.names if len(self.names) > 1 else ()):
            needed = 40 + 8 * len(name)  # a letter is about 8 pixels wide at a font size of 14
            if not x or x + needed > width:
                x, height = 12, height + 22
            legend += (
                f'<rect class="key s{index % NUM_COLOURS}" x="{x}" y="{height - 17}" width="12" height="12" rx="2"/>'
                f'<text class="name" x="{x + 18}" y="{height - 6}">{escape(name)}</text>'
            )
            x += needed
        keys = "".join(f".key.s{i}{{fill:var(--c{i});stroke:none}}" for i in range(NUM_COLOURS))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'role="img" aria-label="{escape(self.description)}"><style>:root{{{LIGHT}}}'
            f"@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}text{{font-family:system-ui,sans-serif}}"
            f".back{{fill:var(--back)}}.name{{fill:var(--text);font-size:14px}}{FIGURE_STYLE}{keys}</style>"
            f'<rect class="back" width="100%" height="100%"/>{self.parts}{legend}</svg>\n'
        )


class Point(NamedTuple):
    """A point, with the half length of its error bar."""

    x: float
    y: float
    error: float = 0.0


@dataclass(frozen=True)
class Series:
    """Named points in the order of x, which are whole numbers: single dots, a line with dots, or a dashed line."""

    name: str
    points: Sequence[Point]
    line: bool = True
    dashed: bool = False


def plot_lines(
    series: Sequence[Series], x_label: str, y_label: str, caption: str, values: str, *, log: bool = False
) -> Figure:
    """Plot all series over the same axes, without points that are not finite; `log` for a logarithmic y axis.

    A line that lies on an earlier one is dashed, so that both are seen.
    """

    def can_be_drawn(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    shown = [replace(each, points=[point for point in each.points if can_be_drawn(point.y)]) for each in series]
    for earlier, each in enumerate(shown):
        if each.points and any(list(each.points) == list(other.points) for other in shown[:earlier]):
            shown[earlier] = replace(each, dashed=True)
    points = [point for each in shown for point in each.points]
    if not points:
        return Figure("", (WIDTH, HEIGHT), (), caption, values)
    left, right = min(point.x for point in points), max(point.x for point in points)
    ends = [end for _, middle, error in points for end in (middle - error, middle, middle + error) if can_be_drawn(end)]
    low, high = (math.log10(end) if log else end for end in (min(ends), max(ends)))
    margin = (high - low) * 0.06 or 0.5
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return LEFT + (value - left) / ((right - left) or 1) * (WIDTH - RIGHT - LEFT)

    def y(value: float) -> float:
        if log:
            value = math.log10(value) if value > 0 else low
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - BOTTOM - TOP)

    parts = []
    for tick in log_ticks(low, high) if log else linear_ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        place = f'x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {place}>{number(tick)}</text>')
    for tick in linear_ticks(left, right, whole=True):
        place = f'x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{number(tick)}</text>')
    for index, each in enumerate(shown):
        parts += _draw_series(each, f"s{index % NUM_COLOURS}", x, y)
    for label, place in (
        (x_label, f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}"'),
        (y_label, f'transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"'),
    ):
        parts.append(f'<text class="label" {place} text-anchor="middle">{escape(label)}</text>')
    return Figure("".join(parts), (WIDTH, HEIGHT), tuple(each.name for each in series), caption, values)


def _draw_series(series: Series, colour: str, x: Scale, y: Scale) -> Iterator[str]:
    points = series.points
    if series.line and len(points) > 1:
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)
        yield f'<polyline class="line {colour}{" dashed" if series.dashed else ""}" points="{path}"/>'
    for at, value, error in points:
        if error > 0 and math.isfinite(error):
            ends = f'y1="{y(value - error):.1f}" y2="{y(value + error):.1f}"'
            yield f'<line class="error {colour}" x1="{x(at):.1f}" x2="{x(at):.1f}" {ends}/>'
    if len(points) <= 80 and not series.dashed:  # more dots would hide the line
        for at, value, error in points:
            text = f"{series.name}, {at:g}: {number(value)}{f' ± {number(error)}' if error else ''}"
            place = f'cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5"'
            yield f'<circle class="dot {colour}" {place}><title>{escape(text)}</title></circle>'


def linear_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers from `low` to `high`; `whole` for integers only."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    step = max(1, round(step)) if whole else step
    return [each * step for each in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `10 ** low` to `10 ** high`."""
    found = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)]
    found = [each for each in found if low <= math.log10(each) <= high]
    if len(found) > 7:
        found = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return found if len(found) >= 3 else linear_ticks(10**low, 10**high)
