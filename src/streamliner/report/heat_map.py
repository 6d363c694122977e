"""Heat maps as SVG: of all pairs of depths, and of the candidates of all rounds of a search."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from streamliner.format import number
from streamliner.report.figures import Figure

MOST_TITLES = 64 * 64
"""Cells up to which each says its value under the pointer. Above, cells of a shade are one path, which is smaller."""
SHADES = 24
Cells = Sequence[Sequence[float | None]]  # rows of numbers; None for no cell


def plot_matrix(matrix: Cells, marked: Sequence[int], caption: str, values: str) -> Figure:
    """Plot a square matrix as coloured cells, row 0 at the top, without those that are None.

    The `marked` rows and columns have a mark at the border. The caption is followed by the range of the values.
    """
    left, top, count = 30, 6, len(matrix)
    cell = max(4, min(24, 480 // count))
    size = count * cell
    finite = [value for row in matrix for value in row if value is not None] or [0.0]
    low, high = min(finite), max(finite)
    dark = [[None if v is None else ((v - low) / ((high - low) or 1)) ** 2 for v in row] for row in matrix]
    titles = [
        [f"depths {i} and {j}: {v:.4f}" if v is not None else "" for j, v in enumerate(r)] for i, r in enumerate(matrix)
    ]
    parts = _draw_cells(dark, titles, left, top, cell, cell)
    for at in (index * cell for index in marked):
        parts.append(f'<rect class="mark" x="{left - 4}" y="{top + at}" width="3" height="{cell}"/>')
        parts.append(f'<rect class="mark" x="{left + at}" y="{top + size + 1}" width="{cell}" height="3"/>')
    for index in range(0, count, max(1, count // 8)):
        centre = index * cell + cell / 2
        parts.append(_tick(left - 8, top + 4 + centre, "end", index))
        parts.append(_tick(left + centre, size + 24, "middle", index))
    caption += f" Lightest {low:.3f}, darkest {high:.3f}."
    return Figure("".join(parts), (size + 40, size + 32), (), caption, values)


def plot_rounds(rounds: Sequence[Mapping[int, float]], chosen: Sequence[int], caption: str, values: str) -> Figure:
    """Plot the scores of candidates, a row for each round and a column for each block, the chosen ones marked.

    A cell is the darker, on a logarithmic scale, the more its score is above the lowest of its round.
    """
    left, top, columns = 30, 6, 1 + max(max(scores) for scores in rounds)
    cell, high = max(4, min(24, 600 // columns)), max(8, min(24, 480 // len(rounds)))
    above = [
        [scores[block] - min(scores.values()) if block in scores else None for block in range(columns)]
        for scores in rounds
    ]
    most = max((math.log1p(1000 * value) for row in above for value in row if value is not None), default=0.0) or 1.0
    dark = [[None if value is None else math.log1p(1000 * value) / most for value in row] for row in above]
    titles = [
        [f"round {i}, block {block}: {number(scores[block])}" if block in scores else "" for block in range(columns)]
        for i, scores in enumerate(rounds, 1)
    ]
    parts = _draw_cells(dark, titles, left, top, cell, high)
    for row, block in enumerate(chosen):
        centre = f'cx="{left + block * cell + cell / 2}" cy="{top + row * high + high / 2}"'
        parts.append(f'<circle class="chosen" {centre} r="{min(cell, high) / 3.5:.1f}"/>')
    for row in range(0, len(rounds), max(1, len(rounds) // 8)):
        parts.append(_tick(left - 8, top + 4 + row * high + high / 2, "end", row + 1))
    for block in range(0, columns, max(1, columns // 10)):
        parts.append(_tick(left + block * cell + cell / 2, top + len(rounds) * high + 16, "middle", block))
    return Figure("".join(parts), (left + columns * cell + 10, top + len(rounds) * high + 24), (), caption, values)


def _draw_cells(
    dark: Cells, titles: Sequence[Sequence[str]], left: int, top: int, width: int, height: int
) -> list[str]:
    """Cells by their darkness from 0 to 1."""
    places = [(i, j, value) for i, row in enumerate(dark) for j, value in enumerate(row) if value is not None]
    if len(places) <= MOST_TITLES:
        return [
            f'<rect class="cell" x="{left + j * width}" y="{top + i * height}" width="{width}" height="{height}" '
            f'fill-opacity="{0.04 + 0.96 * value:.3f}"><title>{escape(titles[i][j])}</title></rect>'
            for i, j, value in places
        ]
    shades: dict[int, list[str]] = {}
    for i, j, value in places:
        shape = f"M{left + j * width} {top + i * height}h{width}v{height}h-{width}z"
        shades.setdefault(round(value * SHADES), []).append(shape)
    return [
        f'<path class="cell" fill-opacity="{0.04 + 0.96 * shade / SHADES:.3f}" d="{"".join(shapes)}"/>'
        for shade, shapes in sorted(shades.items())
    ]


def _tick(x: float, y: float, anchor: str, text: int) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
