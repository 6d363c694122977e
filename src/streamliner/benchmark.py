"""How fast models are: prompts and generation, dense and cut in turn, medians with their spread.

Prompt processing (prefill) is one forward of many tokens: the weights are read once, and arithmetic decides. Generation
(decode) is a forward for every token: the weights and the cache are read each time, and memory decides. The head counts
in both, and removed blocks make it no faster: what they can bring is measured, as the share of time that blocks take.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamliner.blocks import Blocks
from streamliner.errors import EvaluationError
from streamliner.run import environment, write_json
from streamliner.session import Reporter, Session

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to time. SLEB's settings (arXiv 2402.09025, section 4) on a GPU, smaller ones on a CPU: see `usual`.

    Attributes:
        prompt_tokens: of the one prompt that is processed.
        batch_size, context_tokens, new_tokens: of generation: texts at once, their prompt, and what is generated.
        repeats: measurements of each model, in turn, behind one that does not count.
    """

    prompt_tokens: int
    batch_size: int
    context_tokens: int
    new_tokens: int
    repeats: int = 7

    @classmethod
    def usual(cls, device: torch.device, **given: int | None) -> BenchmarkSettings:
        """The defaults for a device, but for what is given."""
        on_gpu = {"prompt_tokens": 2048, "batch_size": 64, "context_tokens": 64, "new_tokens": 128}
        on_cpu = {"prompt_tokens": 256, "batch_size": 1, "context_tokens": 32, "new_tokens": 32}
        chosen = on_cpu if device.type == "cpu" else on_gpu
        return cls(**(chosen | {name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True)
class Times:
    """Seconds of one kind of work, in the order of measurement."""

    seconds: tuple[float, ...]
    tokens: int

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """As a JSON value, with tokens per second at the median, and at the slowest and the fastest."""
        rates = [self.tokens / each for each in self.seconds]
        return {
            "seconds": list(self.seconds),
            "tokens_per_second": self.tokens / self.median,
            "slowest": min(rates),
            "fastest": max(rates),
        }


def benchmark_models(
    sessions: Sequence[Session], given: dict[str, int | None], out: str | Path | None, reporter: Reporter
) -> dict[str, Any]:
    """Time models in turn; the first is the dense one, and the others' speed-ups are against it.

    Args:
        sessions: of the models; all must fit in memory at once.
        given: fields of `BenchmarkSettings` that are not to be the usual ones.
        out: JSON file to write, or None.
        reporter: told what goes on.

    Returns:
        JSON value: for each model its times and bytes; for each but the first its speed-ups, and what the removed share
        of time allows.
    """
    loaded = [session.load(reporter) for session in sessions]
    devices = {str(blocks.device) for blocks in loaded}
    if len(devices) > 1:
        raise EvaluationError(f"The models are on different devices: {', '.join(sorted(devices))}.", "Add --device.")
    settings = BenchmarkSettings.usual(loaded[0].device, **given)
    for session in sessions:
        session.window_length(settings.prompt_tokens, "--prompt-tokens")
        session.window_length(settings.context_tokens + settings.new_tokens, "--context-tokens and --new-tokens")
    words = min(blocks.config.vocab_size for blocks in loaded)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words // 10, words // 2, (settings.batch_size, settings.prompt_tokens), generator=generator)
    work: dict[str, tuple[int, Callable[[Blocks], object]]] = {
        "prompt": (settings.prompt_tokens, lambda blocks: _prompt(blocks, ids[:1])),
        "generation": (
            settings.batch_size * settings.new_tokens,
            lambda blocks: _generate(blocks, ids[:, : settings.context_tokens], settings.new_tokens),
        ),
    }
    times: dict[str, list[Times]] = {}
    without: dict[str, Times] = {}
    rounds = settings.repeats + 1
    with reporter.progress("Measuring") as progress:
        done = 0
        for name, (tokens, run) in work.items():
            seconds: list[list[float]] = [[] for _ in loaded]
            bare: list[float] = []
            for number in range(rounds):
                for place, blocks in enumerate(loaded):
                    taken = _seconds(blocks.device, functools.partial(run, blocks))
                    if number:  # the first warms up
                        seconds[place].append(taken)
                # The dense model without any block but the first: what no removal makes faster.
                with loaded[0].bypass(range(1, len(loaded[0]))):
                    taken = _seconds(loaded[0].device, functools.partial(run, loaded[0]))
                if number:
                    bare.append(taken)
                done += len(loaded) + 1
                progress(done, rounds * (len(loaded) + 1) * len(work))
            times[name] = [Times(tuple(each), tokens) for each in seconds]
            without[name] = Times(tuple(bare), tokens)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "settings": asdict(settings),
        "device": devices.pop(),
        "dtype": str(loaded[0].dtype).removeprefix("torch."),
        "models": [
            _describe(session, blocks, {name: times[name][place] for name in work}, ids)
            for place, (session, blocks) in enumerate(zip(sessions, loaded, strict=True))
        ],
        "compared": [
            {"model": sessions[place].source.name} | _compare(loaded[0], loaded[place], times, without, place)
            for place in range(1, len(loaded))
        ],
    }
    if out is not None:
        write_json(Path(out), result | environment())
    return result


def _compare(
    dense: Blocks, cut: Blocks, times: dict[str, list[Times]], without: dict[str, Times], place: int
) -> dict[str, Any]:
    before, after = len(dense), len(cut)
    parameters = [sum(p.numel() for p in blocks.model.parameters()) for blocks in (dense, cut)]
    result: dict[str, Any] = {"blocks_ratio": before / after, "parameters_ratio": parameters[0] / parameters[1]}
    for name, (first, *_) in times.items():
        mine = times[name][place]
        # Paired: the ratio in each round, in which both ran one after the other.
        ratios = [a / b for a, b in zip(first.seconds, mine.seconds, strict=True)]
        of_a_block = (first.median - without[name].median) / (before - 1)
        result[name] = {
            "speed_up": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "time_in_blocks": of_a_block * before / first.median,
            "allowed_by_time": first.median / (first.median - of_a_block * (before - after)),
        }
    return result


def _describe(session: Session, blocks: Blocks, times: dict[str, Times], ids: Tensor) -> dict[str, Any]:
    tensors = {id(each): each for each in (*blocks.model.parameters(), *blocks.model.buffers())}
    return {
        "model": session.source.name,
        "blocks": len(blocks),
        "parameters": sum(p.numel() for p in blocks.model.parameters()),
        "weight_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "cache_bytes_per_token": cache_bytes(blocks, ids[:1, :16]),
        "peak_bytes": _peak(blocks, ids[:1]),
    } | {name: each.to_json() for name, each in times.items()}


@torch.inference_mode()
def cache_bytes(blocks: Blocks, ids: Tensor) -> float | None:
    """Bytes of keys and values per token of a text as short as `ids`, (1, tokens); None if the model keeps none so."""
    cache = getattr(blocks.model(input_ids=ids.to(blocks.device), use_cache=True), blocks.cache_name)
    layers = getattr(cache, "layers", None)
    if not layers:
        return None
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, Tensor)) / ids.shape[1]


def _peak(blocks: Blocks, ids: Tensor) -> int | None:
    """Peak memory of the prompt on a GPU; a processor does not tell that of one model."""
    if blocks.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(blocks.device)
    _prompt(blocks, ids)
    return torch.cuda.max_memory_allocated(blocks.device)


@torch.inference_mode()
def _prompt(blocks: Blocks, ids: Tensor) -> object:
    return blocks.model(input_ids=ids.to(blocks.device), use_cache=True, **blocks.one_position)


@torch.inference_mode()
def _generate(blocks: Blocks, ids: Tensor, new_tokens: int) -> object:
    """Greedy, token by token, by plain forwards with a cache: no part of `generate` is timed."""
    ids = ids.to(blocks.device)
    keep = {"logits_to_keep": torch.tensor([ids.shape[1] - 1])} if blocks.takes_positions else {}
    cache = None
    for _ in range(new_tokens):
        out = blocks.model(input_ids=ids, use_cache=True, **{blocks.cache_name: cache}, **keep)
        cache, keep = getattr(out, blocks.cache_name), {}
        ids = out.logits[:, -1:].argmax(-1)
    return ids


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    """Of the device, by its events on a GPU."""
    if device.type == "cuda":
        make: Any = torch.cuda.Event
        start, end = make(enable_timing=True), make(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
