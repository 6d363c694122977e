"""Stability: whether the cut model is right and wrong on the same questions as the dense one.

From LLM-Streamline (arXiv 2403.19135, section 4). docs/evaluating.md has a worked example, and says where the authors'
script differs from the paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

METRICS = ("acc", "acc_norm", "exact_match")
"""Metrics of lm-eval that say of each question whether the model was right, in the order of preference."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question.

    Attributes:
        item: identifies the question within its task.
        scores: mean negative log-likelihood per token of each option, in nats. Empty where there are no options.
        correct: whether the model was right.
    """

    item: str
    scores: tuple[float, ...]
    correct: bool


def stability(dense: Sequence[Answer], cut: Sequence[Answer]) -> float:
    """`S = sum_i w_i [correct_dense(i) == correct_cut(i)]`, with `w = softmax_i(s_i)`.

    `s_i` is the standard deviation of the dense model's scores over the options: a question has more weight if its
    options differ more. It is 0 without options, or if a score is not finite. S is 1 if both models are right on the
    same questions, 0 if each is right exactly where the other is wrong. A ValueError if questions differ or there are
    none.
    """
    if not dense or [a.item for a in dense] != [b.item for b in cut]:
        raise ValueError("The two models did not answer the same questions.")
    weights = question_weights(dense)
    agreed = (weight for weight, a, b in zip(weights, dense, cut, strict=True) if a.correct == b.correct)
    return math.fsum(agreed) / math.fsum(weights)


def question_weights(dense: Sequence[Answer]) -> list[float]:
    """`exp(s_i - max s)`: the softmax of `s_i` over questions before the division by its sum; cannot overflow."""
    spreads = [
        pstdev(answer.scores) if len(answer.scores) > 1 and all(map(math.isfinite, answer.scores)) else 0.0
        for answer in dense
    ]
    most = max(spreads)
    return [math.exp(spread - most) for spread in spreads]


def right_or_wrong(samples: Sequence[dict[str, Any]]) -> str:
    """The first of METRICS that the samples of a task have; "" if none, or if it is neither 0 nor 1 for one of them."""
    metric = next((each for each in METRICS if samples and each in samples[0]), "")
    return metric if all(sample.get(metric) in (0, 1) for sample in samples) else ""


def answers(samples: Sequence[dict[str, Any]], metric: str, count_tokens: Callable[[str, str], int]) -> list[Answer]:
    """Read lm-eval's logged samples of one task; none if no `metric` says which are right.

    `count_tokens` is (context, continuation) -> number of tokens of the continuation.
    """
    in_order = sorted(samples, key=lambda sample: sample["doc_id"]) if metric else []
    return [Answer(str(each["doc_id"]), _scores(each, count_tokens), bool(each[metric])) for each in in_order]


def _scores(sample: dict[str, Any], count_tokens: Callable[[str, str], int]) -> tuple[float, ...]:
    responses = sample["filtered_resps"]
    if len(responses) < 2 or any(isinstance(response, str) for response in responses):  # generated text
        return ()
    if "acc_mutual_info" in sample:  # the options' likelihoods are followed by those without the question
        responses = responses[: len(responses) // 2]
    options = zip(responses, sample["arguments"], strict=False)
    return tuple(-float(response[0]) / max(1, count_tokens(*request)) for response, request in options)
