"""Time models in turn: prompts and generation, round after round.

Prompt processing (prefill) is one forward of many tokens: the weights are read once, and arithmetic takes the time.
Generation (decode) is one forward per token: weights and cache are read each time, and memory takes the time.
The head takes part in both, and removing blocks does not make it faster. How much removal can bring is measured too:
the dense model is timed with its first block alone, which shows the share of the time that its blocks take.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from streamliner.benchmark.engine import Engine, TokenIds
from streamliner.benchmark.workload import Workload
from streamliner.errors import Interrupted
from streamliner.runs.files import BENCHMARK_KINDS
from streamliner.runs.reporter import Reporter


@dataclass(frozen=True)
class Times:
    """Times of one kind of work.

    Attributes:
        tokens: processed or generated in each measurement.
        seconds: of each round, in order.
    """

    tokens: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """At the median."""
        return self.tokens / self.median

    def to_json(self) -> dict[str, Any]:
        """As a JSON value, with tokens per second at the median, at the slowest and at the fastest."""
        return {
            "seconds": list(self.seconds),
            "tokens_per_second": self.tokens_per_second,
            "slowest": self.tokens / max(self.seconds),
            "fastest": self.tokens / min(self.seconds),
        }


@dataclass(frozen=True)
class Timings:
    """What `time_models` measured.

    Attributes:
        models: the times of each model by kind.
        first_block: those of the first model with its first block alone; None if not measured.
        stopped: whether Ctrl-C ended it early.
        rounds: that count.
    """

    models: list[dict[str, Times]]
    first_block: dict[str, Times] | None
    stopped: bool
    rounds: int


Work = Callable[[Engine], object]

Round = dict[str, list[float]]
"""Seconds of each model by kind; those of the first block alone come last, if measured."""


def time_models(
    engines: Sequence[Engine], texts: list[list[int]], workload: Workload, *, compare: bool, reporter: Reporter
) -> Timings:
    """Time all models in rounds; Ctrl-C keeps the whole rounds.

    Args:
        engines: one for each model, the dense one first.
        texts: token ids, one row per text of the batch.
        workload: how much to time.
        compare: whether the first model is the dense one; it is then also timed with its first block alone, where
            the engine can do that.
        reporter: where progress goes.

    Raises:
        Interrupted: by Ctrl-C before the end of the first round that counts.
    """
    prompt = [texts[0][: workload.prompt_tokens]]
    context = [text[: workload.context_tokens] for text in texts]
    works: dict[str, Work] = {
        "prompt": lambda engine: engine.prompt(prompt),
        "generation": lambda engine: engine.generate(context, workload.new_tokens),
    }
    only_first_block = engines[0].only_first_block if compare else None
    rounds: list[Round] = []
    stopped, total = False, workload.repeats + 1
    with reporter.progress("Measuring") as progress:
        try:
            for number in range(total):
                measured: Round = {}
                for done, (kind, work) in enumerate(works.items(), 1):
                    measured[kind] = _time_all(engines, prompt, work, only_first_block, backwards=number % 2 == 0)
                    progress(number * len(works) + done, total * len(works))
                if number:  # the first one warms up
                    rounds.append(measured)
        except Interrupted:
            if not rounds:
                raise
            stopped = True
    tokens = {"prompt": workload.prompt_tokens, "generation": workload.batch_size * workload.new_tokens}
    times = [
        {kind: Times(tokens[kind], tuple(each[kind][place] for each in rounds)) for kind in BENCHMARK_KINDS}
        for place in range(len(engines) + bool(only_first_block))
    ]
    return Timings(times[: len(engines)], times[-1] if only_first_block else None, stopped, len(rounds))


def _time_all(
    engines: Sequence[Engine],
    prompt: TokenIds,
    work: Work,
    only_first_block: Callable[[], AbstractContextManager[None]] | None,
    *,
    backwards: bool,
) -> list[float]:
    """Seconds of `work` in each model, then in the first one with its first block alone.

    The order alternates between rounds, so that a machine that slows down favours no model.
    """
    places = range(len(engines))
    measured = {place: _time_one(engines[place], prompt, work) for place in (reversed(places) if backwards else places)}
    seconds = [measured[place] for place in places]
    if only_first_block:
        with only_first_block():
            seconds.append(_time_one(engines[0], prompt, work))
    return seconds


def _time_one(engine: Engine, prompt: TokenIds, work: Work) -> float:
    """Seconds of `work` after a prompt that does not count.

    Without that prompt, a model that is measured twice in a row would have an advantage: for all others, another model
    has emptied the processor's caches.
    """
    engine.prompt(prompt)
    return engine.seconds(partial(work, engine))
