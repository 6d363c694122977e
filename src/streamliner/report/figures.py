"""Pictures as SVG: lines, and a map of a matrix. Colours come from the page, so that light, dark and print all work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import compress

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 88, 16, 12, 44
SERIES = 6
"""Colours of series that the page has: classes s0 to s5."""


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows in words.

    Attributes:
        svg: the element.
        alt: for those who do not see it.
        caption: under it.
    """

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Series:
    """Points of one line.

    Attributes:
        name: in the legend.
        points: (x, y), ascending in x; those that are not finite are left out.
        errors: half lengths of bars at the points, or empty.
        line: whether points are joined.
        dashed: a line to compare others with, without dots.
    """

    name: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float] = ()
    line: bool = True
    dashed: bool = False


def plot(series: Sequence[Series], x_label: str, y_label: str, alt: str, caption: str, *, log: bool = False) -> Figure:
    """Lines over common axes; `log` for a logarithmic y."""
    shown, bars = [], []
    for each in series:
        drawn = [math.isfinite(y) and (y > 0 or not log) for _, y in each.points]
        shown.append(list(compress(each.points, drawn)))
        bars.append(list(compress(each.errors, drawn)))
    xs = [x for points in shown for x, _ in points]
    ends = [
        y + sign * error
        for points, errors in zip(shown, bars, strict=True)
        for (_, y), error in zip(points, errors, strict=False)
        for sign in (-1, 1)
    ]
    ys = [y for points in shown for _, y in points] + [y for y in ends if math.isfinite(y) and (y > 0 or not log)]
    if not xs:
        return Figure("", alt, caption)
    low_x, high_x = min(xs), max(xs)
    to_y = math.log10 if log else float
    low, high = to_y(min(ys)), to_y(max(ys))
    margin = (high - low) * 0.06 or 0.5
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1)
        up = (to_y(y) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    for tick in ticks:
        _, y = place(low_x, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(low_x, high_x, whole=all(float(x).is_integer() for x in xs)):
        x, _ = place(tick, ys[0])
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'
        )
    for number, (each, points, errors) in enumerate(zip(series, shown, bars, strict=True)):
        colour = f"s{number % SERIES}"
        placed = [place(*point) for point in points]
        if each.line and len(placed) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            dashed = " dashed" if each.dashed else ""
            parts.append(f'<polyline class="line {colour}{dashed}" points="{path}"/>')
        for (x, _), (_, value), error in zip(placed, points, errors, strict=False):
            ends = [place(low_x, max(value + sign * error, 1e-9 if log else -math.inf))[1] for sign in (-1, 1)]
            parts.append(
                f'<line class="error {colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'
            )
        if len(placed) <= 80 and not each.dashed:
            parts += [f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    aside = f"translate(14 {middle}) rotate(-90)"
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text class="label" transform="{aside}" text-anchor="middle">{escape(y_label)}</text>')
    return Figure(_svg(WIDTH, HEIGHT, parts, alt) + _legend(series), alt, caption)


def matrix(values: Sequence[Sequence[float]], marked: Sequence[int], alt: str, caption: str) -> Figure:
    """A map of a square matrix, rows from the top; `marked` rows and columns have a stroke at the border."""
    count = len(values)
    cell = max(4, min(24, 480 // count))
    size = count * cell
    flat = [value for row in values for value in row]
    low, high = min(flat), max(flat)
    parts = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            share = (value - low) / ((high - low) or 1)
            parts.append(
                f'<rect class="cell" x="{30 + j * cell}" y="{6 + i * cell}" width="{cell}" height="{cell}" '
                f'fill-opacity="{0.04 + 0.96 * share**2:.3f}"><title>depths {i} and {j}: {value:.4f}</title></rect>'
            )
    for index in marked:
        at = index * cell
        parts.append(f'<rect class="mark" x="26" y="{6 + at}" width="3" height="{cell}"/>')
        parts.append(f'<rect class="mark" x="{30 + at}" y="{6 + size + 1}" width="{cell}" height="3"/>')
    step = max(1, count // 8)
    for index in range(0, count, step):
        centre = index * cell + cell / 2
        parts.append(f'<text class="tick" x="22" y="{10 + centre:.1f}" text-anchor="end">{index}</text>')
        parts.append(f'<text class="tick" x="{30 + centre:.1f}" y="{size + 24}" text-anchor="middle">{index}</text>')
    return Figure(_svg(size + 40, size + 32, parts, alt), alt, f"{caption} Faintest {low:.3f}, darkest {high:.3f}.")


def _svg(width: float, height: float, parts: list[str], alt: str) -> str:
    label = escape(alt, quote=True)
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = (
        f'<li><span class="key s{number % SERIES}"></span>{escape(each.name)}</li>'
        for number, each in enumerate(series)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers between `low` and `high`."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    step = max(1, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [each * step for each in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10 to the `low` and to the `high`."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    found = [each for each in found if low <= math.log10(each) <= high]
    if len(found) > 7:
        found = [10.0**power for power in powers if low <= power <= high]
    return found if len(found) >= 3 else _ticks(10**low, 10**high)


def _number(value: float) -> str:
    return f"{value:.4g}"
