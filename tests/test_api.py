"""Python: every public name is typed, lazy, and works on models in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

import streamliner as sl
from places import SUPPORT, TINY
from streamliner import errors
from streamliner.errors import UserError


def test_a_type_checker_knows_every_public_name():
    script = SUPPORT / "every_public_name.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", str(script)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout
    revealed = [line for line in found.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) >= 20
    assert not [line for line in revealed if "Any" in line]
    for name in sl.__all__:
        assert f"sl.{name}" in script.read_text()


def test_a_recipe_in_python(tiny, tokenizer):
    small = sl.cut(tiny, [4, 5, 9])
    short = {"tokens": None, "steps": 2, "sequence_length": 32, "data": "python-docs", "validation_windows": 2}
    chosen = sl.recipe("good", "heal", **short, fold_tokens=2000, quiet=True)
    assert chosen["loss"] == ["kd", "lm"]
    assert chosen.keys().isdisjoint({"method", "num_samples"})
    assert sl.heal(small, dense=tiny, tokenizer=tokenizer, **chosen).config.num_hidden_layers == 9
    assert sl.recipe("good", "search")["method"] == "refine"
    with pytest.raises(UserError, match="evaluate takes no recipe"):
        sl.recipe("good", "evaluate")


def test_folders_do_not_hide_functions_of_the_same_name():
    from streamliner.search import plan

    assert callable(sl.search)
    assert callable(sl.cut)
    assert plan.Plan is sl.Plan


def test_from_search_to_saved_model_in_memory(tokenizer, tiny, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    text = sl.calibration_set(["one text " * 200, "another " * 200], tokenizer, num_samples=2, sequence_length=64)
    found = sl.search(tiny, text, remove="25%", quiet=True)
    assert "removed" in repr(found)
    small = sl.cut(tiny, found.plan(2))
    assert sl.verify(small, dense=tiny).max_logit_difference <= 1e-3
    small.save_pretrained(tmp_path / "small")
    assert sl.verify(tmp_path / "small", dense=tiny, removed=found.plan(2).removed).tokens > 0
    assert small.config.num_hidden_layers == 10
    assert all((tensor == before[name]).all() for name, tensor in tiny.state_dict().items())


def test_the_settings_are_keywords_with_their_help():
    assert "memory_budget: Memory besides the model" in (sl.search.__doc__ or "")
    with pytest.raises(TypeError, match=r"search has no setting methodd\. Did you mean method\?"):
        sl.search(str(TINY), methodd="sleb")


def test_names_and_models_in_memory_search_alike(tiny, tokenizer, tmp_path):
    text = sl.calibration_set("python-docs", tokenizer, num_samples=2, sequence_length=64)
    here = sl.search(tiny, text, remove=2, quiet=True)
    there = sl.search(str(TINY), text, remove=2, run=tmp_path / "r", quiet=True)
    assert here.plan().removed == there.plan().removed == sl.read_plan(tmp_path / "r").removed


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'streamliner[plot]'"),
        ('{"url": "https://example.org/streamliner.whl"}', "pip install 'streamliner[plot]'"),
        ('{"url": "file:///my%20clone", "dir_info": {}}', "pip install '/my clone[plot]'"),
        ('{"url": "file:///clone", "dir_info": {"editable": true}}', "pip install --editable '/clone[plot]'"),
    ],
)
def test_an_extra_is_installed_from_where_the_package_was(monkeypatch, origin, command):
    class Distribution:
        def read_text(self, name):
            return origin

    monkeypatch.setattr(errors, "distribution", lambda name: Distribution())
    assert errors.install_command("plot") == command
