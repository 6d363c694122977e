"""Tables of results, as text and in a notebook."""

from __future__ import annotations

from streamliner.format import WIDEST_CELL, Table, model_table


def test_many_models_are_rows():
    """Columns for more than three would be wider than a terminal."""
    few, many = ([f"models/{name}" for name in names] for names in ("abc", "abcd"))
    assert model_table(few, [["blocks", *"123"]]).rows == [["", *"abc"], ["blocks", *"123"]]
    assert list(model_table(many, [["blocks", *"1234"]]).rows) == [("", "blocks"), *zip("abcd", "1234", strict=True)]


def test_long_cells_are_wrapped_in_text():
    blocks = ", ".join(map(str, range(40)))
    title, head, *lines, caption = Table([["removed", "x"], [blocks, "1"]], "title", "caption").text().splitlines()
    assert (title, caption, head.split()) == ("title", "caption", ["removed", "x"])
    assert len(lines) == 3
    assert lines.pop(0).partition("   ")[2].strip() == "1"
    assert max(map(len, lines)) <= WIDEST_CELL
    assert blocks.endswith(" ".join(lines))


def test_a_notebook_shows_cells_as_they_are():
    page = Table([["<model>"], ["a & b"]], "1 < 2").html()
    assert page == "<p>1 &lt; 2</p><table><tr><th>&lt;model&gt;</th></tr><tr><td>a &amp; b</td></tr></table>"
