"""Time models in turn: prompts and generation, round after round.

Prompt processing (prefill) is one forward of many tokens: the weights are read once, and arithmetic takes the time.
Generation (decode) is one forward per token: weights and cache are read each time, and memory takes the time.
The head takes part in both, and removing blocks does not make it faster. How much removal can bring is measured too:
the dense model is timed with its first block alone, which shows the share of the time that its blocks take.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from streamliner.benchmark.engine import Engine, TokenIds
from streamliner.benchmark.workload import Workload
from streamliner.errors import Interrupted
from streamliner.runs.reporter import Reporter

Subject = tuple[Engine, Callable[[], AbstractContextManager[None]]]
"""A model, and the context in which it is timed."""


@dataclass(frozen=True)
class Times:
    """Times of one kind of work: tokens processed or generated in each round, and the seconds of each round."""

    tokens: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def rates(self) -> dict[str, float]:
        """Tokens per second at the median, at the slowest and at the fastest: a part of the JSON file."""
        seconds = {"tokens_per_second": self.median, "slowest": max(self.seconds), "fastest": min(self.seconds)}
        return {name: self.tokens / each for name, each in seconds.items()}


def time_models(
    engines: Sequence[Engine], texts: list[list[int]], workload: Workload, *, compare: bool, reporter: Reporter
) -> tuple[list[dict[str, Times]], dict[str, Times] | None]:
    """Time all models in rounds; Ctrl-C keeps the whole rounds.

    If `compare`, the first model is the dense one, which is also timed with its first block alone, where the engine can
    do that. `texts` are token ids, one row per text of the batch.

    Returns:
        The times of each model by kind, and those of the first block alone, None if not measured.

    Raises:
        Interrupted: by Ctrl-C before the end of the first round that counts.
    """
    prompt = [texts[0][: workload.prompt_tokens]]
    context = [text[: workload.context_tokens] for text in texts]
    works: dict[str, Callable[[Engine], object]] = {
        "prompt": lambda engine: engine.prompt(prompt),
        "generation": lambda engine: engine.generate(context, workload.new_tokens),
    }
    only_first_block = engines[0].only_first_block if compare else None
    subjects: list[Subject] = [(engine, nullcontext) for engine in engines]
    subjects += [(engines[0], only_first_block)] if only_first_block else []
    rounds: list[dict[str, list[float]]] = []
    total = workload.repeats + 1
    with reporter.progress("Measuring") as progress:
        try:
            for number in range(total):
                measured = {}
                for done, (kind, work) in enumerate(works.items(), 1):
                    measured[kind] = _time_all(subjects, prompt, work, backwards=number % 2 == 0)
                    progress(number * len(works) + done, total * len(works))
                if number:  # the first one warms up
                    rounds.append(measured)
        except Interrupted:
            if not rounds:
                raise
    tokens = {"prompt": workload.prompt_tokens, "generation": workload.batch_size * workload.new_tokens}
    times = [
        {kind: Times(count, tuple(each[kind][place] for each in rounds)) for kind, count in tokens.items()}
        for place in range(len(subjects))
    ]
    return times[: len(engines)], times[-1] if only_first_block else None


def _time_all(
    subjects: Sequence[Subject], prompt: TokenIds, work: Callable[[Engine], object], *, backwards: bool
) -> list[float]:
    """Seconds of `work` in each model, each after a prompt that does not count.

    The order alternates between rounds, so that a machine that slows down favours no model. Without the prompt, a model
    that is measured twice in a row would have an advantage: for all others, another model has emptied the processor's
    caches.
    """
    seconds = []
    for engine, context in reversed(subjects) if backwards else subjects:
        with context():
            engine.prompt(prompt)
            seconds.append(engine.seconds(partial(work, engine)))
    return seconds[::-1] if backwards else seconds
