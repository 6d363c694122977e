"""Time models: prompts and generation, dense and cut in turn, medians with their spread.

Prompt processing (prefill) is one forward of many tokens: the weights are read once, and arithmetic decides. Generation
(decode) is a forward for every token: the weights and the cache are read each time, and memory decides. The head counts
in both, and removed blocks make it no faster: what they can bring is measured, as the share of time that blocks take.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from streamliner.benchmark.engine import Engine, open_engines
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.errors import InterruptedByUser
from streamliner.run import environment, write_json
from streamliner.session import Reporter, Session

SCHEMA_VERSION = 3
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


def benchmark_models(
    sessions: Sequence[Session],
    given: dict[str, int | None],
    out: str | Path | None,
    reporter: Reporter,
    engine: str = "transformers",
    *,
    compare: bool = True,
) -> dict[str, Any]:
    """Time models in turn; if asked to, compare the others with the first, which is the dense one.

    Stopped by Ctrl-C behind the first round that counts, it returns what was measured, with fewer `repeats` and
    `stopped` true.

    Args:
        sessions: of the models; all must fit in memory at once.
        given: fields of `BenchmarkSettings` that are not to be the usual ones.
        out: JSON file to write, or None.
        reporter: told what goes on.
        engine: one of `ENGINES`.
        compare: whether the first is the dense one, which the others are to be faster than.

    Returns:
        JSON value: for each model its times and bytes; for each but the first its speed-ups, and what the removed share
        of time allows, where the engine can run a model without blocks.
    """
    described = [session.describe() for session in sessions]
    engines, settings = open_engines(engine, sessions, given, reporter)
    ids = _words(sessions, settings)
    times = [_no_times(settings) for _ in engines]
    bare = _no_times(settings) if compare and engines[0].one_block else None
    try:
        _measure(engines, ids, settings, times, bare, reporter)
    except InterruptedByUser:
        taken = [kind.seconds for each in (*times, *([bare] if bare else [])) for kind in each.values()]
        rounds = min(map(len, taken))
        if not rounds:
            raise
        stopped = True
        settings = replace(settings, repeats=rounds)
        for seconds in taken:
            del seconds[rounds:]
    else:
        stopped = False
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "engine": engine,
        "settings": asdict(settings),
        "stopped": stopped,
        "device": engines[0].device,
        "dtype": engines[0].dtype,
        "models": [
            model | each.memory([ids[0][: settings.prompt_tokens]]) | {kind: found[kind].to_json() for kind in KINDS}
            for model, each, found in zip(described, engines, times, strict=True)
        ],
        "compared": [
            {"model": model["model"]} | _compare(described[0], model, times[0], found, bare)
            for model, found in zip(described[1:], times[1:], strict=True)
            if compare
        ],
    }
    if out is not None:
        write_json(Path(out), result | environment())
    return result


def _words(sessions: Sequence[Session], settings: BenchmarkSettings) -> list[list[int]]:
    """Random words that all models know: speed does not depend on them, but for the experts that they go to."""
    known = min(session.config.get_text_config(decoder=True).vocab_size for session in sessions)
    shape = (settings.batch_size, max(settings.prompt_tokens, settings.context_tokens))
    words = torch.randint(known // 10, known // 2, shape, generator=torch.Generator().manual_seed(0))
    return words.tolist()  # type: ignore[no-any-return]


def _no_times(settings: BenchmarkSettings) -> dict[str, Times]:
    tokens = settings.prompt_tokens, settings.batch_size * settings.new_tokens
    return {kind: Times(count) for kind, count in zip(KINDS, tokens, strict=True)}


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
