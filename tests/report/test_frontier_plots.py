"""Plots of all models by the number of removed blocks."""

from __future__ import annotations

import json

from streamliner.report.read import Results, Run, read_results
from streamliner.report.sections.frontier_plots import frontier_sections


def plots(*runs, evaluations=(), benchmarks=()):
    (section,) = frontier_sections(Results(list(runs), list(evaluations), list(benchmarks)))
    return section.figures


def copy(value):
    return json.loads(json.dumps(value))


def test_a_line_for_each_method(evaluation, benchmark):
    """The models of one method make a line with the dense one; the expected speed-up is a line of its own."""
    for value in (evaluation, benchmark):
        dense, cut = value["models"]
        value["models"] = [dense, cut | {"method": "a", "blocks": 8}, cut | {"method": "b"}, cut | {"method": "a"}]
        value["compared"] = value["compared"] * 3
    perplexity, parameters = plots(evaluations=[evaluation])
    assert [perplexity.as_html().count(each) for each in ("<polyline", "<circle", "<li>")] == [2, 5, 2]
    losses = [evaluation["models"][place]["perplexity"][0]["perplexity"] for place in (0, 1)]
    # Of the 12 blocks of the dense model 4 are gone where 8 are left, and 2 in the others.
    assert f"a: {losses[0]:.4g} (0), {losses[1]:.4g} (2), {losses[1]:.4g} (4)" in perplexity.values
    assert f"{evaluation['models'][0]['parameters'] / 1e6:.4g} (0)" in parameters.values
    speed = plots(benchmarks=[benchmark])[0]
    assert speed.parts.count('class="line s2 dashed"') == 1
    expected = benchmark["compared"][0]["prompt"]["allowed_by_time"]
    assert f"expected: 1 (0), {expected:.4g} (2)" in speed.values


def test_the_parameters_of_all_results_are_one_line_for_each_dense_model(evaluation):
    """A second evaluation, of other cuts, adds to it; one of cuts of another model has a picture of its own."""
    second, other = copy(evaluation), copy(evaluation)
    second["models"][1] |= {"model": "smaller", "blocks": 7, "parameters": 5_000_000}
    other["models"][0]["model"] = "another"
    figures = [each for each in plots(evaluations=[evaluation, second, other]) if "Parameters" in each.caption]
    assert len(figures) == 2
    assert ", 5 (5)" in figures[0].values
    assert "Parameters of another and its cuts" in figures[1].caption


def test_cuts_by_hand_are_not_joined(evaluation):
    dense, cut = evaluation["models"]
    evaluation["models"] = [dense, *(cut | {"method": "manual", "model": f"{name}/out"} for name in "ab")]
    perplexity, _ = plots(evaluations=[evaluation])
    assert perplexity.names == ("a/out", "b/out")


def test_searches_of_one_method_are_one_line(folder):
    (run,) = read_results([str(folder / "sleb")]).runs
    short = copy(run.files)
    short["frontier"]["points"].pop()
    (figure,) = plots(Run("short", short, []), run)
    assert figure.names == ("sleb",)
    assert figure.values.count("(2)") == 1


def test_captions_say_how_it_was_measured(evaluation):
    evaluation["models"][0]["perplexity"][0] |= {"window": 32, "windows": 9, "stride": 31}
    assert "9 windows of 32 tokens, bfloat16" in plots(evaluations=[evaluation])[0].caption
    evaluation["models"][0]["perplexity"][0]["stride"] = 8
    assert "9 windows of 32 tokens, stride 8, bfloat16" in plots(evaluations=[evaluation])[0].caption
