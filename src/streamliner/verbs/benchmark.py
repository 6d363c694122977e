"""`streamliner benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from streamliner.benchmark.opening import open_engines
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.benchmark.timing import KINDS, Times, _compare, _measure
from streamliner.errors import InterruptedByUser
from streamliner.model.session import Session
from streamliner.runs.files import SCHEMA_VERSIONS, write_json
from streamliner.runs.folder import environment
from streamliner.runs.reporter import Reporter


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
        "schema_version": SCHEMA_VERSIONS["benchmark"],
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
