"""Stability and flips, by hand and by their properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from streamliner.evaluate.compare import Flips, accuracy_difference, flips
from streamliner.evaluate.stability import Answer, answers, question_weights, right_or_wrong, stability

DENSE = [Answer("0", (1.0, 3.0), True), Answer("1", (2.0, 2.0), True), Answer("2", (4.0, 1.0, 1.0), False)]


def turned(answers, *items):
    """The same answers, with right and wrong exchanged for `items`."""
    return [Answer(a.item, a.scores, a.correct != (a.item in items)) for a in answers]


def test_the_worked_example():
    """docs/evaluating.md, by hand: spreads 1, 0 and sqrt(2); weights exp of them, divided by their sum."""
    weights = [math.exp(1), math.exp(0), math.exp(math.sqrt(2))]
    assert [w / sum(question_weights(DENSE)) for w in question_weights(DENSE)] == pytest.approx(
        [w / sum(weights) for w in weights]
    )
    assert stability(DENSE, turned(DENSE, "1")) == pytest.approx(1 - 1 / sum(weights))
    assert stability(DENSE, turned(DENSE, "1")) == pytest.approx(0.8723, abs=5e-5)
    assert stability(DENSE, turned(DENSE, "2")) == pytest.approx(0.4748, abs=5e-5)
    assert flips(DENSE, turned(DENSE, "1")) == Flips(1, 1, 0, 1)


def test_the_same_model_is_stable_and_its_opposite_not():
    assert stability(DENSE, DENSE) == 1
    assert stability(DENSE, turned(DENSE, "0", "1", "2")) == 0


scores = st.floats(-1e300, 1e300, allow_nan=False)
questions = st.lists(st.tuples(st.lists(scores, min_size=1, max_size=5), st.booleans()), min_size=1, max_size=8)


@given(questions, st.data())
def test_stability_grows_with_agreement_and_never_overflows(given_questions, data):
    scaled = [[score * 1e-4 for score in each] for each, _ in given_questions]
    dense = [Answer(str(i), tuple(s), c) for i, (s, (_, c)) in enumerate(zip(scaled, given_questions, strict=True))]
    wrong = data.draw(st.sets(st.sampled_from([a.item for a in dense])))
    fewer = data.draw(st.sets(st.sampled_from(sorted(wrong)))) if wrong else set()
    low, high = stability(dense, turned(dense, *wrong)), stability(dense, turned(dense, *fewer))
    assert 0 <= low <= high <= 1


def test_extreme_scores():
    dense = [Answer("0", (0.0, 1e6), True), Answer("1", (0.0, 1.0), True), Answer("2", (0.0, 900.0), False)]
    assert stability(dense, dense) == 1
    assert stability(dense, turned(dense, "0")) == pytest.approx(0)


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        stability(DENSE, DENSE[:2])


def test_accuracy_difference_by_hand():
    """100 questions, 9 lost and 1 won: -0.08, McNemar's exact p = 2 (1 + 10) / 1024; interval of 10 and 2 of 102."""
    found = accuracy_difference(Flips(60, 9, 1, 30))
    assert found.mean == pytest.approx(-0.08)
    assert found.p_value == pytest.approx(22 / 1024)
    error = math.sqrt((12 / 102 - (8 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((-8 / 102 - 1.96 * error, -8 / 102 + 1.96 * error))
    same = accuracy_difference(Flips(3, 0, 0, 4))
    assert (same.mean, same.p_value) == (0, 1)
    assert same.low < 0 < same.high
    assert accuracy_difference(Flips(5000, 1500, 500, 3000)).p_value == pytest.approx(0, abs=1e-100)
    assert accuracy_difference(Flips(0, 1000, 1000, 0)).p_value == 1


def test_scores_that_are_not_finite_count_as_no_options():
    dense = [Answer("0", (math.inf, 1.0), True), Answer("1", (math.nan, 1.0), True), Answer("2", (2.0, 2.0), False)]
    assert question_weights(dense) == [1, 1, 1]


def sample(**values):
    return {"doc_id": 0, "arguments": [("q", " a"), ("q", " bc")], "filtered_resps": [(-1.0, 0), (-4.0, 0)]} | values


def test_answers_are_of_questions_that_are_right_or_wrong():
    def tokens(context, continuation):
        return len(continuation) - 1

    def read(each):
        return answers([each], right_or_wrong([each]), tokens)

    assert read(sample(acc=1)) == [Answer("0", (1.0, 2.0), True)]
    assert read(sample(acc=0.03)) == []  # a share of probability: truthfulqa_mc2
    assert read(sample(bleu=1)) == []
    assert read(sample(acc_norm=1)) == read(sample(acc=1, acc_norm=0)) == [Answer("0", (1.0, 2.0), True)]
    assert read(sample(exact_match=0.0, filtered_resps=["12", "13"])) == [Answer("0", (), False)]
    assert right_or_wrong([]) == ""
    doubled = sample(acc=1, acc_mutual_info=1, filtered_resps=[(-1.0, 0), (-4.0, 0), (-9.0, 0), (-9.0, 0)])
    assert read(doubled) == [Answer("0", (1.0, 2.0), True)]
