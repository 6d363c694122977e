"""Losses of the head on a CPU: a few rows of logits in float32 at a time, beside up to 512 positions at once.

    python benchmarks/head.py
    python benchmarks/head.py --vocabulary 49152 --hidden 576 --dtype float32

Both ways take turns on the same random logits: the cross-entropy and the divergence of a search, and the losses `kd`
and `lm` of a healing with their gradients, head included. Seconds are medians, and the faults are pages of memory that
the process had to ask the system for. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.heal.losses import head_losses
from streamliner.measure import loss


def works(vocabulary: int, hidden: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What is timed, by name, on two windows of 512 tokens."""
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, hidden).to(dtype)
    stream = (torch.randn(2, 512, hidden) * 3 / hidden**0.5).to(dtype)
    dense = stream + (torch.randn_like(stream) / hidden**0.5).to(dtype)
    ids = torch.randint(0, vocabulary, (2, 512))
    logits, dense_logits = (functional.linear(each[:1], weight) for each in (stream, dense))

    def head(some: Tensor, positions: Tensor) -> Tensor:
        return functional.linear(some[:, positions], weight)

    def train() -> None:
        options = {"weights": {"kd": 1.0, "lm": 1.0}, "top_k": None, "vocab_size": vocabulary}
        head_losses(stream.clone().requires_grad_(True), dense, ids, head, **options)[0].backward()

    return {
        "cross-entropy": lambda: loss.next_token_losses(logits, ids[:1]),
        "divergence": lambda: loss.mean_divergences(dense_logits, logits, ids[:1]),
        "training on kd and lm": train,
    }


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds and page faults of one call."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    work()
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    few, many = loss.ROW_BYTES, 4 * asked.vocabulary * loss.POSITIONS_AT_ONCE
    result = vars(asked) | {"torch": torch.__version__}
    for name, work in works(asked.vocabulary, asked.hidden, getattr(torch, asked.dtype)).items():
        found: dict[int, list[tuple[float, int]]] = {many: [], few: []}
        for repeat in range(asked.repeats + 1):
            for size, each in found.items():
                loss.ROW_BYTES = size
                each += [measured(work)][: min(1, repeat)]  # the first is a warm-up
        medians = ([statistics.median(column) for column in zip(*each, strict=True)] for each in found.values())
        (before, asks), (after, asks_now) = medians
        print(f"{name}: {before:.3f} s -> {after:.3f} s, {before / after:.1f}x; faults {asks:,.0f} -> {asks_now:,.0f}")
        result[name] = {"at once": before, "few rows": after, "ratio": before / after, "faults": [asks, asks_now]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
