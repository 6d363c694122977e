"""Stability: whether the cut model is right and wrong on the same questions as the dense one.

From LLM-Streamline (arXiv 2403.19135, section 4). docs/evaluating.md has a worked example, and says where the authors'
script differs from the paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any


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
    same questions, 0 if each is right exactly where the other is wrong.

    Raises:
        ValueError: the questions differ, or there are none.
    """
    check_same(dense, cut)
    weights = question_weights(dense)
    kept = (weight for weight, a, b in zip(weights, dense, cut, strict=True) if a.correct == b.correct)
    return math.fsum(kept) / math.fsum(weights)


def question_weights(dense: Sequence[Answer]) -> list[float]:
    """`exp(s_i - max s)`: the softmax of `s_i` over questions before the division by its sum; cannot overflow."""
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
    """Read lm-eval's logged samples of one task; empty if any of them is neither right nor wrong.

    Args:
        samples: as lm-eval logged them.
        count_tokens: (context, continuation) -> number of tokens of the continuation.
    """
    if any(sample.get("acc") not in (0, 1) for sample in samples):
        return []
    return [
        Answer(str(sample["doc_id"]), _scores(sample, count_tokens), bool(sample["acc"]))
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]


def _scores(sample: dict[str, Any], count_tokens: Callable[[str, str], int]) -> tuple[float, ...]:
    requests = [(each["arg_0"], each["arg_1"]) for each in _arguments(sample)]
    responses = sample["filtered_resps"]
    if len(responses) < 2 or any(isinstance(response, str) for response in responses):  # generated text
        return ()
    if "acc_mutual_info" in sample:  # the options' likelihoods are followed by those without the question
        responses = responses[: len(responses) // 2]
    found = [float(response[0]) for response in responses]
    tokens = [max(1, count_tokens(*request)) for request in requests[: len(found)]]
    return tuple(-likelihood / count for likelihood, count in zip(found, tokens, strict=True))


def _arguments(sample: dict[str, Any]) -> list[dict[str, Any]]:
    arguments = sample["arguments"]
    if isinstance(arguments, dict):
        return [arguments[key] for key in sorted(arguments, key=lambda key: int(key.rpartition("_")[2]))]
    return [{"arg_0": context, "arg_1": continuation} for context, continuation in arguments]
