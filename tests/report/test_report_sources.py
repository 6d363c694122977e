"""What a report reads: run folders, finished or not, and result files; everything else is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from command import run
from places import TINY
from streamliner.errors import OutputError
from streamliner.report.read import Results, Run, read_results
from streamliner.report.render import as_markdown, make_sections
from streamliner.report.sections.healing_run import healing_section


def test_a_training_that_still_runs_is_read(folder, tmp_path):
    shutil.copytree(folder / "out.run", tmp_path / "run")
    history = tmp_path / "run" / "healing" / "history.jsonl"
    whole = history.read_text()
    history.write_text(whole + '{"step": 9')
    _, healing = read_results([str(tmp_path / "run")]).runs
    assert len(healing.history) == len(whole.splitlines())


def test_a_training_without_a_result_is_shown():
    settings = {"network": "block", "lora": 4, "loss": {"lm": 1.0, "mse": 0.5}, "data": [["python-docs", 1.0]]}
    settings |= {"batch_size": 6, "learning_rate": 2e-4, "seed": 3}
    history = [{"step": 0, "validation": 2.5}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "validation": 2.25}]
    text = as_markdown(make_sections(Results([Run("x/healing", {"healing": {"settings": settings}}, history)])), "p")
    assert "## Healing: block and LoRA of rank 4, lm and mse (x)" in text
    assert "Trained on python-docs; batches of 6 windows, learning rate 0.0002, seed 3." in text
    assert "from 2.5 to 2.25" in text


def test_a_search_that_is_not_finished_is_shown_as_such(capsys, folder, tmp_path):
    shutil.copytree(folder / "sleb", tmp_path / "begun")
    for name in ("plan.json", "frontier.json"):
        (tmp_path / "begun" / name).unlink()
    run(capsys, "report", tmp_path / "begun", "-o", tmp_path / "x.html")
    assert "Not finished" in (tmp_path / "x.md").read_text()
    _, err = run(capsys, "cut", TINY, "--plan", tmp_path / "begun", "-o", tmp_path / "cut", status=2)
    assert "is not finished" in err


def test_numbers_that_are_not_finite_are_left_out(folder, evaluation):
    """An overflow in half precision is null in JSON: no picture breaks, and tables say so."""
    (found,) = read_results([str(folder / "sleb")]).runs
    files = json.loads(json.dumps(found.files))
    candidates = files["frontier"]["points"][0]["candidates"]
    block, *others = candidates
    candidates[block] = None
    files["frontier"]["points"][1]["candidates"] = dict.fromkeys(others)
    files["similarity"] = {"cosine": [[None, 0.5], [0.5, 1.0]]}
    evaluation["drafts"][0]["greedy"] |= {"acceptance_rate": None, "standard_error": None}
    sections = make_sections(Results([Run("x", files, [])], [evaluation]))
    (search,) = (section for section in sections if section.title.startswith("Search"))
    scores, similarity = search.figures
    assert f"of {len(others)} candidates" in scores.values
    assert similarity.parts.count('class="cell"') == 3
    assert as_markdown(sections, "p").count("not finite") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a result of evaluate or benchmark"),
        ('{"removed": [1]}', "not a result of evaluate or benchmark"),
        ('{"schema_version": 1, "models": [], "compared": []}', "this release reads"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(OutputError, match=message):
        read_results([str(tmp_path / "x.json")])


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"train_blocks": "2"}, "Healing: last 2 kept blocks, kd (own)"),
        ({"train_blocks": "all", "train_head": True}, "Healing: all kept blocks and head, kd (own)"),
        ({"network": "block", "train_blocks": "0"}, "Healing: block, kd (own)"),
    ],
)
def test_a_training_is_named_by_what_was_trained(settings, title):
    whole = {"network": "none", "loss": {"kd": 1.0}, "data": [["python-docs", 1.0]], "batch_size": 2}
    own = Run("runs/own", {"healing": {"settings": whole | {"learning_rate": 1e-4, "seed": 0} | settings}}, [])
    assert healing_section(own).title == title


def test_a_search_says_its_score_and_cost(folder):
    (run,) = read_results([str(folder / "sleb")]).runs
    text = as_markdown(make_sections(Results([run])), "pictures")
    assert "Score: calibration loss, nats per token." in text
    assert f"It cost {run.files['run']['cost']['forwards']} forwards" in text
