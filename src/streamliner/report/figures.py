"""Pictures as SVG: lines, and a map of a matrix; in a page, whose colours they take, or as files of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import compress

from streamliner.format import number

WIDTH, HEIGHT = 640, 320


LEFT, RIGHT, TOP, BOTTOM = 88, 16, 12, 44


SERIES = 6
"""Colours of series: classes s0 to s5."""


LIGHT = (
    "--text:#1b1b1f;--back:#fff;--soft:#667;--rule:#ccd;"
    "--c0:#1f5fbf;--c1:#c2410c;--c2:#15803d;--c3:#7e22ce;--c4:#a16207;--c5:#0e7490"
)


DARK = (
    "--text:#e8e8ee;--back:#15161a;--soft:#9aa;--rule:#3a3c46;"
    "--c0:#7fb0ff;--c1:#ff9a6b;--c2:#6fd08c;--c3:#cf9bff;--c4:#e5c04f;--c5:#5fd0e6"
)


PARTS = (
    ".grid{stroke:var(--rule);stroke-width:.7}.tick,.label{fill:var(--soft);font-size:14px}"
    ".line{fill:none;stroke-width:1.8}.dashed{stroke-dasharray:6 4}.error{stroke-width:1.2}"
    ".cell{fill:var(--c0)}.mark{fill:var(--c1)}"
) + "".join(f".s{i}{{stroke:var(--c{i})}}.dot.s{i}{{fill:var(--c{i});stroke:none}}" for i in range(SERIES))
"""How the parts of pictures look."""


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows in words.

    Attributes:
        parts: SVG elements; "" if there is nothing to draw.
        size: width and height.
        names: of the series.
        alt: for those who do not see it.
        caption: under it.
    """

    parts: str
    size: tuple[int, int]
    names: tuple[str, ...]
    alt: str
    caption: str

    @property
    def svg(self) -> str:
        """The element in a page, with a legend behind it."""
        if not self.parts:
            return ""
        items = (
            f'<li><span class="key s{index % SERIES}"></span>{escape(name)}</li>'
            for index, name in enumerate(self.names)
        )
        legend = f'<ul class="legend">{"".join(items)}</ul>' if len(self.names) > 1 else ""
        size = f'viewBox="0 0 {self.size[0]} {self.size[1]}" style="max-width:{self.size[0]}px"'
        return f'<svg {size} role="img" aria-label="{escape(self.alt, quote=True)}">{self.parts}</svg>{legend}'

    @property
    def file(self) -> str:
        """The same as a file, with colours of its own for light and dark, and the legend within."""
        width, height = self.size
        legend, x = [], 0
        for index, name in enumerate(self.names if len(self.names) > 1 else ()):
            needed = 40 + 8 * len(name)  # at 14 pixels a letter is about 8 wide
            if not x or x + needed > width:
                x, height = 12, height + 22
            legend.append(
                f'<rect class="key s{index % SERIES}" x="{x}" y="{height - 17}" width="12" height="12" rx="2"/>'
                f'<text class="name" x="{x + 18}" y="{height - 6}">{escape(name)}</text>'
            )
            x += needed
        keys = "".join(f".key.s{i}{{fill:var(--c{i});stroke:none}}" for i in range(SERIES))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'role="img" aria-label="{escape(self.alt, quote=True)}"><style>:root{{{LIGHT}}}'
            f"@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}text{{font-family:system-ui,sans-serif}}"
            f".back{{fill:var(--back)}}.name{{fill:var(--text);font-size:14px}}{PARTS}{keys}</style>"
            f'<rect class="back" width="100%" height="100%"/>{self.parts}{"".join(legend)}</svg>\n'
        )


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
        return Figure("", (WIDTH, HEIGHT), (), alt, caption)
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
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in _ticks(low_x, high_x, whole=all(float(x).is_integer() for x in xs)):
        x, _ = place(tick, ys[0])
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    for index, (each, points, errors) in enumerate(zip(series, shown, bars, strict=True)):
        colour = f"s{index % SERIES}"
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
    return Figure("".join(parts), (WIDTH, HEIGHT), tuple(each.name for each in series), alt, caption)


def matrix(values: Sequence[Sequence[float | None]], marked: Sequence[int], alt: str, caption: str) -> Figure:
    """A map of a square matrix, rows from the top; `marked` rows and columns have a stroke at the border."""
    count = len(values)
    cell = max(4, min(24, 480 // count))
    size = count * cell
    flat = [value for row in values for value in row if value is not None] or [0.0]  # null: not finite
    low, high = min(flat), max(flat)
    parts = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is None:
                continue
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
    told = f"{caption} Faintest {low:.3f}, darkest {high:.3f}."
    return Figure("".join(parts), (size + 40, size + 32), (), alt, told)


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
