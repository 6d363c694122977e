"""`--config`: one YAML file is one run, flags win, and a run folder holds the file that repeats the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from command import run
from places import TINY
from streamliner.cli.command import RECIPE
from streamliner.fields import flags_of, kind_of
from streamliner.heal_settings import HealSettings
from streamliner.runs.yaml_config import read_recipe, recipe_names
from streamliner.settings import (
    BenchmarkSettings,
    CutSettings,
    EvaluateSettings,
    ModelSettings,
    PruneSettings,
    ReportSettings,
    SearchSettings,
)

ALL = (
    *(BenchmarkSettings, CutSettings, EvaluateSettings, HealSettings, ModelSettings, ReportSettings, SearchSettings),
)


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def test_a_config_file_is_a_run_and_flags_win(capsys, tmp_path):
    file = write(
        tmp_path,
        f"model: {TINY}\noutput: {tmp_path / 'out'}\nremove: 2\nnum-samples: 2\nsequence_length: 64\n"
        "set: {metric: one-shot}\ndtype: float32\n",
    )
    found = json.loads(run(capsys, "prune", "--config", file, "--json")[0])
    assert len(found["plan"]["removed"]) == 2
    assert found["plan"]["settings"]["metric"] == "one-shot"
    assert found["cut"]["verification"]["dtype"] == "float32"
    other = tmp_path / "other"
    found = json.loads(run(capsys, "prune", "--config", file, "--remove", "1", "-o", other, "--json")[0])
    assert len(found["plan"]["removed"]) == 1
    assert (other / "model.safetensors").exists()


def test_several_calibration_texts_are_repeated_from_a_run_folder(capsys, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} word of its own kind. " * 400)
    texts = ("--calibration", f"{tmp_path / 'a.txt'}=3", "--calibration", tmp_path / "b.txt")
    short = ("--num-samples", "4", "--sequence-length", "32", "--remove", "1")
    run(capsys, "search", TINY, "-o", tmp_path / "run", *texts, *short)
    run(capsys, "search", "--config", tmp_path / "run" / "config.yaml", "-o", tmp_path / "again")
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("run", "again")]
    assert plans[0] == plans[1]
    assert plans[0]["calibration"]["source"] == f"{tmp_path / 'a.txt'} (3) + {tmp_path / 'b.txt'} (1)"


def test_a_run_is_repeated_from_its_folder(capsys, tmp_path, monkeypatch):
    first = tmp_path / "first"
    run(capsys, "search", TINY, "--remove", "2", "--num-samples", "2", "--sequence-length", "64", "-o", first)
    recorded = yaml.safe_load((first / "config.yaml").read_text())
    assert (recorded["model"], recorded["num_samples"], recorded["seed"]) == (str(TINY), 2, 0)
    run(capsys, "search", "--config", first / "config.yaml", "-o", tmp_path / "second")
    for name in ("plan.json", "frontier.json"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_sample: 3\n", "Did you mean num_samples?"),
        ("- 3\n", "holds no settings"),
        ("remove: [\n", "cannot be read"),
        ("remove: 2\n", "MODEL is missing"),
        ("dtype: float64\n", "--dtype has no float64"),
    ],
)
def test_mistakes_in_a_config_file(capsys, tmp_path, text, message):
    model = [] if message.startswith("MODEL") else [TINY]
    _, err = run(capsys, "search", *model, "--config", write(tmp_path, text), "-o", tmp_path / "r", status=2)
    assert message in err
    assert not (tmp_path / "r").exists()


def test_old_flags_still_work(capsys, tmp_path):
    arguments = ["--perplexity", "python-docs:test", "--window", "64", "--max-windows=2", "--no-cache", "--json"]
    out, err = run(capsys, "evaluate", TINY, *arguments)
    assert json.loads(out)["models"][0]["perplexity"][0]["windows"] == 2
    assert "--window is now --sequence-length." in err


@pytest.mark.parametrize("settings", ALL)
def test_every_setting_has_a_short_help_and_a_kind(settings):
    for name, flag in flags_of(settings).items():
        if not flag.python_only:
            assert 1 <= len(flag.help.split("(")[0].split()) <= 10, name
            assert not flag.help.endswith("."), name
            assert kind_of(settings, name) in (bool, int, float, str, list[str]), name


def test_quiet_prints_the_path_alone(capsys, tmp_path):
    quick = ("--num-samples", "2", "--sequence-length", "64", "-q")
    out, err = run(capsys, "prune", TINY, "--remove", "1", "-o", tmp_path / "out", *quick)
    assert (out, err) == (f"{tmp_path / 'out'}\n", "")
    out, _ = run(capsys, "methods", "-q")
    assert "block-influence" in out.split()


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "paper"])
def test_a_recipe_is_a_run_and_flags_win(capsys, tmp_path, name):
    small = ("--num-samples", "2", "--sequence-length", "64", "--fold-tokens", "1k", "--validation-windows", "2")
    trains = name in ("good", "best")
    budget = ("--steps", "2") if trains else ()
    arguments = ("prune", TINY, "-o", tmp_path / "out", "--remove", "2", "--recipe", name, *small, *budget)
    found = json.loads(run(capsys, *arguments, "--json")[0])
    assert found["plan"]["method"] == ("best" if name == "best" else "refine")
    assert found["healing"]["settings"]["fold"] == "auto"
    training = found["healing"]["training"]
    assert (training and training["steps"]) == (2 if trains else None)


def test_recipes_have_settings_that_exist_and_heal_takes_its_own(capsys, tmp_path):
    known = set(flags_of(HealSettings)) | set(flags_of(SearchSettings)) | set(flags_of(PruneSettings))
    assert set(re.split(r", | or ", RECIPE.__metadata__[0].help.partition(": ")[2])) == set(recipe_names())
    for name in recipe_names():
        assert read_recipe(name, known, {}).keys() == read_recipe(name, [*known, "other"], {}).keys()
        assert "method" not in read_recipe(name, flags_of(HealSettings), {})
        assert "tokens" not in read_recipe(name, known, {"steps": 3})
    out, err = run(capsys, "prune", TINY, "-o", tmp_path / "out", "--remove", "2", "--recipe", "magic", status=2)
    assert "There is no recipe magic." in out + err


def test_numbers_that_yaml_takes_for_text(capsys, tmp_path):
    file = write(tmp_path, f"cut: {TINY}\noutput: {tmp_path / 'out'}\nlearning_rate: 3e-4\n")
    out, err = run(capsys, "heal", "--config", file, status=2)
    assert "not a number" not in out + err
    file = write(tmp_path, f"cut: {TINY}\noutput: {tmp_path / 'out'}\nlearning_rate: fast\n")
    out, err = run(capsys, "heal", "--config", file, status=2)
    assert "--learning-rate fast is not a number." in out + err


def test_the_config_of_a_moved_run_continues_where_it_is_now(capsys, tmp_path):
    """Also that of `prune`, which is there from the beginning of the search."""
    (tmp_path / "here").mkdir()
    size = ("--num-samples", "2", "--sequence-length", "32", "--remove", "1", "--no-verify")
    run(capsys, "prune", TINY, *size, "-o", tmp_path / "here" / "out")
    moved = (tmp_path / "here" / "out.run").rename(tmp_path / "moved.run")
    assert "streamliner prune" in (moved / "config.yaml").read_text().splitlines()[0]
    _, err = run(capsys, "prune", "--config", moved / "config.yaml", "-o", tmp_path / "again")
    assert f"Continuing the run in {moved}" in err.replace("\n", "")
    assert not (tmp_path / "here" / "out.run").exists()
    assert (tmp_path / "again" / "model.safetensors").exists()
