"""Help ends with commands that work, and a wrong name is answered with the one that was meant."""

from __future__ import annotations

import shlex

import pytest
from typer.main import get_command

from command import run
from places import TINY
from streamliner.api import recipe
from streamliner.cli import app
from streamliner.errors import TextError, UserError, did_you_mean
from streamliner.search.registry import make_method, method_class
from streamliner.text.formats import text_of_row
from streamliner.text.sources import read_text

VERBS = get_command(app).commands
SHOWN = 78
"""Characters of a line in a terminal of 80 columns: a longer command could not be copied from there."""


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_in_the_help_are_understood(verb):
    heading, *examples = VERBS[verb].epilog.split("\n\n")
    assert "Examples" in heading
    assert 1 <= len(examples) <= 3
    for example in examples:
        assert len(example) <= SHOWN, example
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("streamliner", verb)
        given = VERBS[verb].make_context(verb, arguments).params
        assert all(argument in str(given.values()) for argument in arguments if not argument.startswith("-"))


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("serch", "x"), "search"),
        (("search", "x", "--remov", "3"), "--remove"),
        (("prune", "x", "-o", "OUT", "--remove", "1", "--recipe", "god"), "good"),
        (("search", "x", "-o", "OUT", "--remove", "1", "--dtype", "bf16"), "bfloat16"),
        (("benchmark", "x", "--engine", "vlm"), "vllm"),
        (("heal", "x", "-o", "OUT", "--network", "fnn"), "ffn"),
        (("heal", "x", "-o", "OUT", "--loss", "normalised_mse"), "normalized-mse"),
        (("heal", "x", "-o", "OUT", "--fold", "refti"), "refit"),
    ],
)
def test_mistakes_on_the_command_line(capsys, arguments, meant):
    err = run(capsys, *arguments, status=2)[1]
    assert f"Did you mean {meant}?" in err or f"Did you mean '{meant}'?" in err or f"options: {meant})" in err, err


def test_mistakes_in_names_of_methods_recipes_and_their_settings():
    for name, wrong in (("block-influence", "Block_Influnce"), ("streamline", "stremline")):
        with pytest.raises(UserError, match=f"Did you mean {name}"):
            method_class(wrong)
    with pytest.raises(UserError, match="Did you mean metric"):
        make_method("sleb", {"metrc": "one-shot"})
    with pytest.raises(UserError, match="Did you mean one-shot"):
        make_method("sleb", {"metric": "oneshot"})
    with pytest.raises(UserError, match="Did you mean search"):
        recipe("good", "serach")


def test_mistakes_in_names_of_texts_and_columns(tmp_path):
    (tmp_path / "wiki.txt").write_text("words")
    for source, meant in (
        ("wikitxt2", "wikitext2"),
        ("python_doc", "python-docs"),
        (tmp_path / "wikii.txt", "wiki.txt"),
    ):
        with pytest.raises(TextError, match=f"Did you mean {meant}"):
            read_text(str(source))
    with pytest.raises(TextError, match="Did you mean test"):
        read_text("python-docs:tset")
    with pytest.raises(TextError, match="Did you mean content"):
        text_of_row({"content": "words", "id": 3}, "contents", "Row 1")


def test_a_name_like_no_other_has_no_suggestion():
    assert did_you_mean("xyzzy", ("search", "cut"), "See --help.") == "See --help."
    assert did_you_mean("", ("search",)) == ""
    assert TINY.name not in did_you_mean("SEARCH", ("search", TINY.name))
