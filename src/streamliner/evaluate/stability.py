"""Stability: how far the cut model is right and wrong on the same questions as the dense one (LLM-Streamline).

From the samples that lm-eval logs, of tasks whose answers are compared by their likelihood. The paper is arXiv
2403.19135, section 4; docs/evaluating.md has a worked example and says where the authors' script departs from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a model made of one question.

    Attributes:
        item: names the question within its task.
        scores: for each option the mean negative log-likelihood per token, nats. Empty where there are no options.
        correct: whether the model was right.
    """

    item: str
    scores: tuple[float, ...]
    correct: bool


def stability(dense: Sequence[Answer], cut: Sequence[Answer]) -> float:
    """`S = sum_i w_i [correct_dense(i) == correct_cut(i)]`, with `w = softmax_i(s_i)`.

    `s_i` is the standard deviation over the options of the dense model's scores: a question counts the more, the more
    the options differ for the dense model; one with a score that is not finite counts as one without options. 1 means
    right and wrong on the same questions, 0 on opposite ones.

    Raises:
        ValueError: the questions differ, or there is none.
    """
    check_same(dense, cut)
    weights = question_weights(dense)
    return math.fsum(
        weight for weight, a, b in zip(weights, dense, cut, strict=True) if a.correct == b.correct
    ) / math.fsum(weights)


def question_weights(dense: Sequence[Answer]) -> list[float]:
    """The softmax over questions of `s_i`, not divided by its sum; the largest weight is 1, so nothing overflows."""
    spreads = [
        pstdev(answer.scores) if len(answer.scores) > 1 and all(map(math.isfinite, answer.scores)) else 0.0
        for answer in dense
    ]
    most = max(spreads)
    return [math.exp(spread - most) for spread in spreads]


def check_same(dense: Sequence[Answer], cut: Sequence[Answer]) -> None:
    """Raise ValueError unless both models answered the same questions, in the same order."""
    if not dense or [a.item for a in dense] != [b.item for b in cut]:
        raise ValueError("The two models did not answer the same questions.")


def answers(samples: Sequence[dict[str, Any]], count_tokens: Callable[[str, str], int]) -> list[Answer]:
    """From lm-eval's logged samples of one task; none if any is not plainly right or wrong.

    Args:
        samples: in the order of the task.
        count_tokens: (context, continuation) -> tokens of the continuation.
    """
    if any(sample.get("acc") not in (0, 1) for sample in samples):
        return []
    return [
        Answer(
            str(sample["doc_id"]),
            _scores(sample, count_tokens),
            bool(sample["acc"]),
        )
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]


def _scores(sample: dict[str, Any], count_tokens: Callable[[str, str], int]) -> tuple[float, ...]:
    requests = [(each["arg_0"], each["arg_1"]) for each in _arguments(sample)]
    responses = sample["filtered_resps"]
    if len(responses) < 2 or any(isinstance(response, str) for response in responses):  # text that was generated
        return ()
    if "acc_mutual_info" in sample:  # behind the options stand their likelihoods without the question
        responses = responses[: len(responses) // 2]
    found = [float(response[0]) for response in responses]
    tokens = [max(1, count_tokens(*request)) for request in requests[: len(found)]]
    return tuple(-likelihood / count for likelihood, count in zip(found, tokens, strict=True))


def _arguments(sample: dict[str, Any]) -> list[dict[str, Any]]:
    arguments = sample["arguments"]
    if isinstance(arguments, dict):
        return [arguments[key] for key in sorted(arguments, key=lambda key: int(key.rpartition("_")[2]))]
    return [{"arg_0": context, "arg_1": continuation} for context, continuation in arguments]
