"""The result of an evaluation: its JSON is that of the reports that exist, and it shows itself."""

from __future__ import annotations

import json
from html import escape

import pytest

from places import ROOT
from streamliner.cli.console import print_tables
from streamliner.cut.memory import cut_model
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter
from streamliner.settings import EvaluateSettings
from streamliner.verbs.evaluate import evaluate_models

ENVIRONMENT = {"command", "versions", "hardware"}


@pytest.fixture
def result(tiny, tokenizer, text, tasks):
    pytest.importorskip("lm_eval")
    sessions = [
        Session.of(tiny, name="models/dense", tokenizer=tokenizer),
        Session.of(cut_model(tiny, (4, 5)), name="models/<cut>"),
    ]
    settings = EvaluateSettings(
        dense=tiny,
        perplexity=str(text),
        sequence_length=64,
        num_samples=2,
        tasks="topics",
        tasks_path=str(tasks),
        as_draft_for=tiny,
        draft_prompts=2,
        draft_tokens=16,
        samples=1,
    )
    return evaluate_models(sessions, settings, Reporter(quiet=True), parent=sessions[0])


def shape(value):
    """The keys of a JSON value in their order, of lists those of the last item; of tasks and texts, any one."""
    if isinstance(value, list):
        return [shape(value[-1])] if value and isinstance(value[-1], (dict, list)) else []
    if isinstance(value, dict):
        named = {"tasks", "loss_behind", "metrics"}
        return {
            key: [shape(next(iter(item.values())))] if key in named and isinstance(item, dict) else shape(item)
            for key, item in value.items()
        }
    return None


def without_new_keys(value, known):
    """`value` without the keys of objects that `known` does not have there."""
    if isinstance(value, list) and isinstance(known, list):
        return [without_new_keys(*pair) for pair in zip(value, known, strict=True)]
    if isinstance(value, dict) and isinstance(known, dict):
        return {key: without_new_keys(item, known[key]) for key, item in value.items() if key in known}
    return value


def test_json_has_the_keys_of_results_that_exist(result):
    """A later version may add keys; a program that read the older ones goes on working."""
    written = json.loads((ROOT / "docs" / "gemma-3-270m" / "evaluation.json").read_text())
    expected = {key: item for key, item in written.items() if key not in ENVIRONMENT}
    found = json.loads(json.dumps(result.to_json()))
    assert [key for key in found if key in expected] == list(expected)
    assert without_new_keys(shape(found), shape(expected)) == shape(expected)


def test_it_shows_itself(result, capsys):
    """In Python, in a notebook and on the command line alike."""
    text, page = repr(result), result._repr_html_()
    print_tables(result.tables())
    printed = " ".join(capsys.readouterr().out.split())
    assert text.splitlines()[0].split() == ["dense", "<cut>"]
    labels = ("perplexity, text.txt", "loss increase (nats)", "topics acc", "stability", "accepted", "sample 1")
    for label in (
        *labels,
        "only dense right",
        "95% interval",
        "As a draft for dense",
        "<cut>, compared with the dense",
    ):
        assert label in text
        assert escape(label) in page
        assert label in printed
    assert "<cut>" not in page
    assert len({table.text() for table in result.tables()}) == 5
