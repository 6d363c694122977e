"""Pictures: points, error bars and ticks are where they should be; an SVG file needs nothing besides it."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from streamliner.report.figures import Point, Series, linear_ticks, log_ticks, plot_lines
from streamliner.report.heat_map import plot_matrix, plot_rounds
from streamliner.report.render import as_html
from streamliner.report.section import Section


def test_error_bars_are_at_their_points():
    """The middle point cannot be drawn; the bar of the last one reaches from 2 to 4."""
    points = [Point(0, 1.0, 0.1), Point(1, math.inf, 0.2), Point(2, 3.0, 1.0)]
    picture = plot_lines([Series("a", points)], "x", "y", "a", "b").parts
    dots = [float(y) for y in re.findall(r'<circle[^>]*cy="([\d.]+)"', picture)]
    bars = [(float(a), float(b)) for a, b in re.findall(r'"error s0"[^>]*y1="([\d.]+)" y2="([\d.]+)"', picture)]
    assert [(a + b) / 2 for a, b in bars] == pytest.approx(dots, abs=0.1)
    assert (bars[1][0] - bars[1][1]) / (bars[0][0] - bars[0][1]) == pytest.approx(10, rel=0.05)


def test_a_bar_that_reaches_below_zero_ends_at_a_logarithmic_axis():
    picture = plot_lines([Series("a", [Point(0, 1.0, 2.0), Point(1, 10.0)])], "x", "y", "a", "b", log=True)
    ((bottom, top),) = re.findall(r'"error s0"[^>]*y1="([\d.]+)" y2="([\d.]+)"', picture.parts)
    assert 0 < float(top) < float(bottom) < picture.size[1]


def test_a_line_on_another_one_is_dashed():
    points = [Point(1, 2.0), Point(2, 3.0)]
    series = [Series("one", points), Series("same", points), Series("other", [Point(1, 2.0), Point(2, 4.0)])]
    lines = [part for part in plot_lines(series, "x", "y", "", "").parts.split("<") if part.startswith("polyline")]
    assert ["dashed" in line for line in lines] == [False, True, False]


def test_an_svg_file_stands_alone():
    """Well-formed, with its colours and legend, so that it can be shown anywhere."""
    names = [f"a < series with a long name, number {i}" for i in range(4)]
    series = [Series(name, [Point(0, 1.0), Point(1, 2.0)]) for name in names]
    root = ElementTree.fromstring(plot_lines(series, "x", "y", "caption.", "values").as_svg())
    svg = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.iter(f"{svg}text") if text.get("class") == "name"] == names
    low = [float(text.get("y", 0)) for text in root.iter(f"{svg}text")]
    assert max(low) < float(root.get("height"))
    assert root.get("aria-label") == "caption. values"
    (style,) = root.iter(f"{svg}style")
    assert set(re.findall(r"var\((--\w+)\)", style.text)) <= set(re.findall(r"(--\w+):", style.text))


def test_ticks_are_round_and_on_the_axis():
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert linear_ticks(0.0, 0.31) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert linear_ticks(3, 3) == [3]
    assert linear_ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert log_ticks(0, 2) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(1.0, 1.2) == pytest.approx([10, 11, 12, 13, 14, 15])


def test_values_that_cannot_be_drawn_are_left_out():
    nothing = plot_lines([Series("a", [Point(0, math.nan)])], "x", "y", "caption", "values")
    assert "<figure>" not in as_html([Section("title", figures=[nothing])])
    points = [Point(0, 1.0), Point(1, math.inf), Point(2, 3.0), Point(3, 0.0)]
    some = plot_lines([Series("a", points)], "x", "y", "a < b", "values", log=True).as_html()
    assert some.count("<circle") == 2
    assert 'aria-label="a &lt; b values"' in some
    assert plot_matrix([[1.0, 0.5], [0.5, 1.0]], [1], "caption", "values").parts.count('class="cell"') == 4


def test_a_large_matrix_is_small_on_the_page():
    """127 blocks have 128 depths; a page with two searches of them stays below 2 MB."""
    matrix = [[1 - abs(i - j) / 200 for j in range(128)] for i in range(128)]
    parts = plot_matrix(matrix, [3], "caption", "values").parts
    assert len(parts) < 500_000
    assert parts.count("M") == 128 * 128


def test_rounds_have_a_row_each_and_their_lowest_marked():
    rounds = [{1: 2.0, 2: 2.5, 4: 2.1}, {1: 2.4, 4: 2.2}]
    parts = plot_rounds(rounds, [1, 4], "caption", "values").parts
    assert parts.count('class="cell"') == 5
    assert parts.count('class="chosen"') == 2
    assert "<title>round 2, block 4: 2.2</title>" in parts
    opacities = [float(text) for text in re.findall(r'fill-opacity="([\d.]+)"', parts)]
    assert opacities[0] == opacities[4] == 0.04, "the lowest of each round is the lightest"
    assert max(opacities) == opacities[1] == 1.0, "block 2 is the furthest above the lowest of its round"


def test_a_dot_says_its_value_under_the_pointer():
    figure = plot_lines([Series("sleb", [Point(1, 24.5, 0.5)])], "x", "y", "caption", "values")
    assert "<title>sleb, 1: 24.5 ± 0.5</title>" in figure.parts
