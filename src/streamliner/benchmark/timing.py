"""Time models: prompts and generation, dense and cut in turn, medians with their spread.

Prompt processing (prefill) is one forward of many tokens: the weights are read once, and arithmetic decides. Generation
(decode) is a forward for every token: the weights and the cache are read each time, and memory decides. The head counts
in both, and removed blocks make it no faster: what they can bring is measured, as the share of time that blocks take.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from streamliner.benchmark.engine import Engine
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.runs.reporter import Reporter

KINDS = ("prompt", "generation")


@dataclass
class Times:
    """Seconds of one kind of work, in the order of measurement."""

    tokens: int
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """As a JSON value, with tokens per second at the median, and at the slowest and the fastest."""
        rates = [self.tokens / each for each in self.seconds]
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.median,
            "slowest": min(rates),
            "fastest": max(rates),
        }


def _measure(
    engines: Sequence[Engine],
    ids: list[list[int]],
    settings: BenchmarkSettings,
    times: list[dict[str, Times]],
    bare: dict[str, Times] | None,
    reporter: Reporter,
) -> None:
    """Rounds of all models, forwards and backwards by turns, so that a machine that slows down favours none.

    Each measurement follows a prompt that does not count: what a model left in caches is gone when its turn comes
    again, and those that are measured twice running would have the better of it.
    """
    prompt = [ids[0][: settings.prompt_tokens]]
    context = [text[: settings.context_tokens] for text in ids]

    def measured(kind: str, engine: Engine) -> float:
        engine.prompt(prompt)
        if kind == "prompt":
            return engine.seconds(partial(engine.prompt, prompt))
        return engine.seconds(partial(engine.generate, context, settings.new_tokens))

    rounds, done = settings.repeats + 1, 0
    with reporter.progress("Measuring") as progress:
        for number in range(rounds):
            places = range(len(engines))
            for kind in KINDS:
                for place in places if number % 2 else reversed(places):
                    taken = measured(kind, engines[place])
                    if number:  # the first warms up
                        times[place][kind].seconds.append(taken)
                if bare is not None:
                    with engines[0].only_first_block():
                        taken = measured(kind, engines[0])
                    if number:
                        bare[kind].seconds.append(taken)
                done += 1
                progress(done, rounds * len(KINDS))


def _compare(
    dense_model: dict[str, Any],
    cut_model: dict[str, Any],
    dense: dict[str, Times],
    cut: dict[str, Times],
    bare: dict[str, Times] | None,
) -> dict[str, Any]:
    before, after = dense_model["blocks"], cut_model["blocks"]
    result: dict[str, Any] = {
        "blocks_ratio": before / after,
        "parameters_ratio": dense_model["parameters"] / cut_model["parameters"],
    }
    for kind in KINDS:
        # Paired: the ratio in each round, in which both ran soon after one another.
        ratios = [a / b for a, b in zip(dense[kind].seconds, cut[kind].seconds, strict=True)]
        result[kind] = {
            "speed_up": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "time_in_blocks": None,
            "allowed_by_time": None,
        }
        if bare is not None and before > 1:
            whole = dense[kind].median
            of_a_block = (whole - bare[kind].median) / (before - 1)
            result[kind]["time_in_blocks"] = of_a_block * before / whole
            result[kind]["allowed_by_time"] = whole / (whole - of_a_block * (before - after))
    return result
