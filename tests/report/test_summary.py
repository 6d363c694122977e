"""The first table of a report: a column holds only numbers that were measured in the same way."""

from __future__ import annotations

import json

import pytest

from streamliner.report.read import Results
from streamliner.report.sections.summary import summary_sections


def rows(*evaluations, benchmarks=()):
    (section,) = summary_sections(Results([], list(evaluations), list(benchmarks)))
    return section.tables[0]


def copy(value):
    return json.loads(json.dumps(value))


def test_results_come_together(evaluation, benchmark):
    head, dense, cut = rows(evaluation, benchmarks=[benchmark])
    assert head[4:] == ["perplexity, python-docs:test", "prompt speed-up", "generation speed-up", "accepted as a draft"]
    assert dense[1:4] == ["", "12", f"{evaluation['models'][0]['parameters'] / 1e6:.4g}"]
    assert dense[5:] == ["", "", ""]
    assert cut[1:3] == ["streamline, healed", "10"]
    assert float(cut[5]) == pytest.approx(benchmark["compared"][0]["prompt"]["speed_up"], abs=0.006)
    assert cut[4] == f"{evaluation['models'][1]['perplexity'][0]['perplexity']:.4g}"
    assert summary_sections(Results()) == []


def test_other_windows_have_their_own_column(evaluation):
    other = copy(evaluation)
    other["models"][1]["perplexity"][0] |= {"sha256": "of other windows", "perplexity": 5}
    head, dense, cut = rows(evaluation, other)
    assert head[4:6] == [f"perplexity, python-docs:test (3 windows of 64 tokens, bfloat16) #{n}" for n in (1, 2)]
    assert dense[5] == ""
    assert cut[5] == "5"


def test_headings_say_what_differs(evaluation, benchmark):
    other, longer = copy(evaluation), copy(benchmark)
    for model in other["models"]:
        model["perplexity"][0] |= {"sha256": "other", "window": 32, "windows": 9, "stride": 31}
    longer["settings"]["prompt_tokens"] = 99
    head = rows(evaluation, other, benchmarks=[benchmark, longer])[0]
    assert len(set(head)) == len(head)
    assert "perplexity, python-docs:test (9 windows of 32 tokens, bfloat16)" in head
    assert "prompt speed-up (99 tokens, bfloat16)" in head


def test_other_machines_and_other_dense_models_have_their_own_columns(evaluation, benchmark):
    elsewhere, of_another = copy(benchmark), copy(evaluation)
    elsewhere["hardware"]["processor"] = "another"
    of_another["drafts"][0]["parent"] = "another"
    head = rows(evaluation, of_another, benchmarks=[benchmark, elsewhere])[0]
    for label in ("prompt speed-up", "generation speed-up", "accepted as a draft"):
        assert len([each for each in head if each.startswith(label)]) == 2
