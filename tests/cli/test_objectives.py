"""`--objective` and `--answers-only` of search and prune."""

from __future__ import annotations

import json
import re

import pytest

import streamliner as sl
from command import run
from places import TINY
from streamliner.errors import TextError
from streamliner.measure.probe import Probe
from streamliner.search.plan import read_plan

SMALL = ("--num-samples", "3", "--sequence-length", "48", "--dtype", "float32", "--protect-first", "4")


@pytest.fixture
def questions(tmp_path):
    rows = [{"prompt": f"What is {n}? ", "completion": f"It is number {n}."} for n in range(60)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def search(capsys, folder, *arguments, status=0):
    return run(capsys, "search", TINY, "--remove", "2", *SMALL, "-o", folder, *arguments, status=status)


def test_a_search_by_divergence(capsys, tmp_path, blocks):
    out, _ = search(capsys, tmp_path / "run", "--objective", "kl")
    assert re.search(r"change +┃ divergence ┃ score", out)
    assert "score: divergence from the dense model, nats per token" in out
    plan = read_plan(tmp_path / "run")
    assert plan.objective == "kl"
    text = sl.calibration_set("python-docs", sl_tokenizer(), num_samples=3, sequence_length=48)
    assert plan.loss == pytest.approx(Probe(blocks, text).loss(plan.removed).mean, rel=1e-5)
    assert plan.score == pytest.approx(Probe(blocks, text, objective="kl").loss(plan.removed).mean, rel=1e-4)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["search"]["objective"] == "kl"
    run(capsys, "report", tmp_path / "run", "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "divergence" in page
    assert f"{plan.score:.4f}" in page
    run(capsys, "cut", TINY, "--plan", tmp_path / "run", "-o", tmp_path / "out", "-q")
    assert read_plan(tmp_path / "out").objective == "kl"


def sl_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


def test_a_run_continues_with_its_objective_only(capsys, tmp_path):
    for mine, other in (("loss", "kl"), ("kl", "loss")):
        folder = tmp_path / mine
        search(capsys, folder, "--objective", mine)
        _, err = search(capsys, folder, "--objective", other, status=2)
        assert f"objective was '{mine}' there and is '{other}' now" in err
        found = json.loads(search(capsys, folder, "--objective", mine, "--json")[0])
        assert found["frontier"]["objective"] == mine


def test_a_run_without_an_objective_was_by_loss(capsys, tmp_path):
    """As release 0.1.0 before the choice wrote it."""
    search(capsys, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    first, *rest = journal.read_text().splitlines()
    header = json.loads(first)
    del header["identity"]["objective"]
    journal.write_text("\n".join([json.dumps(header), *rest]) + "\n")
    found = json.loads(search(capsys, tmp_path / "run", "--json")[0])
    assert found["cost"]["window_losses"] == 0
    _, err = search(capsys, tmp_path / "run", "--objective", "kl", status=2)
    assert "objective was 'loss' there and is 'kl' now" in err


def test_perplexity_may_rise_as_far_as_allowed_whatever_the_objective(capsys, tmp_path):
    arguments = ("search", TINY, *SMALL, "--objective", "kl", "--max-perplexity-increase", "60%", "--json")
    found = json.loads(run(capsys, *arguments, "-o", tmp_path / "run")[0])["frontier"]
    assert found["points"]
    assert all(point["loss"] - found["dense_loss"] <= 0.47 + 1e-4 for point in found["points"])  # log 1.6
    assert all(point["divergence"] != point["loss"] for point in found["points"])


def test_another_objective_is_refused(capsys, tmp_path):
    _, err = search(capsys, tmp_path / "run", "--objective", "accuracy", status=2)
    assert "--objective has no accuracy" in err
    assert "loss, kl" in err


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_a_search_on_answers(capsys, tmp_path, questions, objective):
    arguments = ("--calibration", questions, "--answers-only", "--objective", objective, "--method", "refine")
    _, err = search(capsys, tmp_path / "run", *arguments)
    assert "of them in answers" in err
    assert read_plan(tmp_path / "run").calibration["counted_tokens"] > 0
    _, err = search(capsys, tmp_path / "run", *arguments[:2], *arguments[3:], status=2)
    assert "is of another run: its calibration text or --seed differed" in err.replace("\n", " ")


def test_answers_only_needs_answers(capsys, tmp_path):
    _, err = search(capsys, tmp_path / "run", "--answers-only", status=2)
    assert "no conversations" in err
    assert '"prompt"' in err


def test_prune_on_answers(capsys, tmp_path, questions):
    arguments = ("prune", TINY, "--remove", "2", *SMALL, "--calibration", questions, "--answers-only", "-q")
    run(capsys, *arguments, "-o", tmp_path / "cut")
    assert read_plan(tmp_path / "cut").calibration["counted_tokens"] > 0
    assert "answers_only: true" in (tmp_path / "cut.run" / "config.yaml").read_text()


def test_prune_and_heal_on_answers_searches_on_the_default_text(capsys, tmp_path, questions):
    """The flag is then for the training text alone."""
    training = ("--heal", "--network", "none", "--train-blocks", "1", "--loss", "lm", "--steps", "1")
    sizes = ("--global-batch-size", "1", "--validation-windows", "1")
    arguments = ("prune", TINY, "--remove", "2", *SMALL, *training, *sizes, "--data", questions, "--answers-only", "-q")
    run(capsys, *arguments, "-o", tmp_path / "healed")
    assert "counted_tokens" not in read_plan(tmp_path / "healed").calibration


def test_in_python_a_set_of_windows_says_itself_what_counts(tiny, tokenizer, questions):
    options = {"remove": 1, "quiet": True, "answers_only": True}
    plain = sl.calibration_set("python-docs", tokenizer, num_samples=2, sequence_length=32)
    with pytest.raises(TextError, match="made already"):
        sl.search(tiny, calibration=plain, **options)
    own = sl.calibration_set(str(questions), tokenizer, num_samples=2, sequence_length=32, answers_only=True)
    found = sl.search(tiny, calibration=own, **options)
    same = sl.search(
        tiny, calibration=str(questions), num_samples=2, sequence_length=32, tokenizer=tokenizer, **options
    )
    assert found.frontier == same.frontier
