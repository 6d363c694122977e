"""The result of a benchmark: the speed of each model, and how much faster each is than the dense one."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from streamliner.benchmark.engine import MemoryUse
from streamliner.benchmark.timing import Times, Timings
from streamliner.benchmark.workload import Workload
from streamliner.format import html_table, number, short_names, text_table
from streamliner.runs.files import BENCHMARK_KINDS, SCHEMA_VERSIONS


@dataclass(frozen=True)
class ModelSpeed:
    """What was measured of one model.

    Attributes:
        model: its description: name ("model"), blocks, parameters, and how it was cut.
        memory: bytes that it takes.
        prompt: times of processing a prompt.
        generation: times of generating.
    """

    model: dict[str, Any]
    memory: MemoryUse
    prompt: Times
    generation: Times

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.model["model"])

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        times = {"prompt": self.prompt.to_json(), "generation": self.generation.to_json()}
        return self.model | asdict(self.memory) | times


@dataclass(frozen=True)
class SpeedUp:
    """How much faster the cut model is in one kind of work.

    Attributes:
        speed_up: dense seconds / cut seconds, the median over rounds.
        lowest, highest: over rounds.
        time_in_blocks: share of the dense model's time that its blocks take; None if not measured.
        allowed_by_time: the speed-up if only the time of the removed blocks were saved; None if not measured.
    """

    speed_up: float
    lowest: float
    highest: float
    time_in_blocks: float | None = None
    allowed_by_time: float | None = None


@dataclass(frozen=True)
class SpeedComparison:
    """A model compared with the dense one.

    Attributes:
        model: the name of the compared model.
        blocks_ratio, parameters_ratio: those of the dense model / those of this one.
        prompt, generation: the speed-ups.
    """

    model: str
    blocks_ratio: float
    parameters_ratio: float
    prompt: SpeedUp
    generation: SpeedUp


@dataclass(frozen=True, repr=False)
class Benchmark:
    """The result of a benchmark.

    Attributes:
        engine: that ran the models.
        workload: what was timed; `repeats` is the number of rounds that were finished.
        stopped: whether Ctrl-C ended it early.
        device, dtype: where the models ran, and the precision.
        models: what was measured of each, the dense one first.
        compared: the others compared with the dense one; empty if nobody said which one is dense.
    """

    engine: str
    workload: Workload
    stopped: bool
    device: str
    dtype: str
    models: tuple[ModelSpeed, ...]
    compared: tuple[SpeedComparison, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON value: what `streamliner benchmark` writes."""
        return {
            "schema_version": SCHEMA_VERSIONS["benchmark"],
            "engine": self.engine,
            "settings": asdict(self.workload),
            "stopped": self.stopped,
            "device": self.device,
            "dtype": self.dtype,
            "models": [model.to_json() for model in self.models],
            "compared": [asdict(comparison) for comparison in self.compared],
        }

    def table(self) -> list[list[str]]:
        """The main numbers, with a column for each model."""
        rows = [
            ["", *short_names([model.name for model in self.models])],
            ["blocks", *(str(model.model["blocks"]) for model in self.models)],
        ]
        for kind in BENCHMARK_KINDS:
            times: list[Times] = [getattr(model, kind) for model in self.models]
            rows.append([f"{kind}, tokens/s", *(number(each.tokens_per_second) for each in times)])
            if self.compared:
                speed_ups: list[SpeedUp] = [getattr(each, kind) for each in self.compared]
                rows.append([f"{kind}, speed-up", "", *(f"{each.speed_up:.3f}" for each in speed_ups)])
        return rows

    def __repr__(self) -> str:
        return f"{self._headline()}\n{text_table(self.table())}"

    def _repr_html_(self) -> str:
        return f"<p>{self._headline()}</p>{html_table(self.table())}"

    def _headline(self) -> str:
        work = self.workload
        return (
            f"{self.engine}, {self.dtype} on {self.device}: a prompt of {work.prompt_tokens} tokens; {work.batch_size} "
            f"x {work.context_tokens} tokens, {work.new_tokens} generated for each; medians of {work.repeats}"
        )


def compare_speed(dense: ModelSpeed, cut: ModelSpeed, first_block: dict[str, Times] | None) -> SpeedComparison:
    """Compare a cut model with the dense one; `first_block` has the times of the dense model's first block alone."""
    before, after = dense.model["blocks"], cut.model["blocks"]
    prompt, generation = (
        _speed_up(getattr(dense, kind), getattr(cut, kind), first_block[kind] if first_block else None, before, after)
        for kind in BENCHMARK_KINDS
    )
    ratio = dense.model["parameters"] / cut.model["parameters"]
    return SpeedComparison(cut.name, before / after, ratio, prompt, generation)


def _speed_up(dense: Times, cut: Times, first_block: Times | None, before: int, after: int) -> SpeedUp:
    # Paired: the ratio within each round, in which both models ran soon after one another.
    ratios = [a / b for a, b in zip(dense.seconds, cut.seconds, strict=True)]
    found = statistics.median(ratios), min(ratios), max(ratios)
    if first_block is None or before == 1:
        return SpeedUp(*found)
    per_block = (dense.median - first_block.median) / (before - 1)
    saved = per_block * (before - after)
    return SpeedUp(*found, per_block * before / dense.median, dense.median / (dense.median - saved))


def model_speeds(described: list[dict[str, Any]], memory: list[MemoryUse], timings: Timings) -> tuple[ModelSpeed, ...]:
    """Put together what was measured of each model."""
    return tuple(
        ModelSpeed(model, used, times["prompt"], times["generation"])
        for model, used, times in zip(described, memory, timings.models, strict=True)
    )
