"""The result of a benchmark: the speed of each model, and how much faster each is than the dense one."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from streamliner.benchmark.engine import MemoryUse
from streamliner.benchmark.timing import Times
from streamliner.benchmark.workload import Workload
from streamliner.format import Table, Tables, human_bytes, model_table, number, short_names
from streamliner.runs.files import SCHEMA_VERSIONS
from streamliner.settings import BENCHMARK_KINDS

MEMORY = {
    "weight_bytes": "weights",
    "cache_bytes_per_token": "cache per prompt token",
    "cache_bytes_per_further_token": "  after full sliding windows",
    "peak_bytes": "peak memory, prompt",
}
"""Fields of `MemoryUse` and what the table calls them."""


@dataclass(frozen=True)
class ModelSpeed:
    """What was measured of one model; `model` is its description, from `Session.describe`."""

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
        timed: dict[str, Times] = {"prompt": self.prompt, "generation": self.generation}
        times = {kind: {"seconds": list(each.seconds)} | each.rates for kind, each in timed.items()}
        return self.model | asdict(self.memory) | times


@dataclass(frozen=True)
class SpeedUp:
    """How much faster the cut model is in one kind of work.

    Attributes:
        speed_up: dense seconds / cut seconds, the median over rounds.
        lowest, highest: over rounds.
        time_in_blocks: share of the dense model's time that its blocks take; None if not measured.
        allowed_by_time: the speed-up to expect if only the time of the removed blocks is saved; None if not measured.
    """

    speed_up: float
    lowest: float
    highest: float
    time_in_blocks: float | None = None
    allowed_by_time: float | None = None


@dataclass(frozen=True)
class SpeedComparison:
    """A model compared with the dense one; the ratios are dense / this one."""

    model: str
    blocks_ratio: float
    parameters_ratio: float
    prompt: SpeedUp
    generation: SpeedUp

    def table(self, name: str) -> Table:
        """The speed-ups, under a short name."""
        rows = [["", "speed-up", "lowest to highest"]]
        if self.prompt.time_in_blocks is not None:  # in transformers alone
            rows[0] += ["time in blocks", "expected"]
        for kind in BENCHMARK_KINDS:
            each: SpeedUp = getattr(self, kind)
            cells = [kind, f"{each.speed_up:.3f}", f"{each.lowest:.3f} to {each.highest:.3f}"]
            if each.time_in_blocks is not None and each.allowed_by_time is not None:
                cells += [f"{each.time_in_blocks:.0%}", f"{each.allowed_by_time:.3f}"]
            rows.append(cells)
        fewer = f"{self.blocks_ratio:.2f}x fewer blocks, {self.parameters_ratio:.2f}x fewer parameters"
        return Table(rows, title=f"{name}: {fewer}")


@dataclass(frozen=True, repr=False)
class Benchmark(Tables):
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

    def to_json(self) -> dict[str, object]:
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

    def tables(self) -> list[Table]:
        """All models; then for each but the dense one how much faster it is."""
        names, work = [model.name for model in self.models], self.workload
        title = (
            f"{self.engine}, {self.dtype} on {self.device}; prompt of {work.prompt_tokens} tokens; {work.batch_size} x "
            f"{work.context_tokens} tokens, {work.new_tokens} generated for each; medians of {work.repeats}, slowest "
            "and fastest in brackets."
        )
        rows = [["blocks", *(str(model.model["blocks"]) for model in self.models)]]
        rows.append(["parameters", *(f"{model.model['parameters']:,}" for model in self.models)])
        for kind in BENCHMARK_KINDS:
            rows.append([f"{kind}, tokens/s", *(_rates(getattr(model, kind)) for model in self.models)])
        used: list[Any] = []
        for field, label in MEMORY.items():
            used, before = [getattr(model.memory, field) for model in self.models], used
            if None not in used and used != before:  # without sliding windows a further token takes as much
                rows.append([label, *(human_bytes(round(count)) for count in used)])
        named = zip(short_names(names)[1:], self.compared, strict=False)
        return [model_table(names, rows, title), *(compared.table(name) for name, compared in named)]


def _rates(times: Times) -> str:
    median, slow, fast = map(number, times.rates.values())
    return f"{median} ({slow} to {fast})"


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
