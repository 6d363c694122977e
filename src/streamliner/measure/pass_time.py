"""How long a forward takes on this machine, from two short ones."""

import time
from dataclasses import dataclass

import torch

from streamliner.measure.counters import Counters
from streamliner.measure.plain import PlainPath
from streamliner.model.blocks import Blocks

TOKENS = 256
"""Tokens of a window that are timed at most; a longer window is taken to need as much time for each token."""


@dataclass(frozen=True)
class PassTime:
    """Seconds for one window: of each block, and of all else (embeddings, norm, head and loss)."""

    block: float
    rest: float


def time_pass(blocks: Blocks, window: torch.Tensor) -> PassTime:
    """Time the dense model, and its first block alone, on the first tokens of a window, (tokens,).

    The lesser of two times each: the first forward also sets things up.
    """
    plain = PlainPath(blocks, Counters())
    ids = window[None, :TOKENS]

    def seconds(removed: tuple[int, ...]) -> float:
        found = []
        for _ in range(2):
            start = time.perf_counter()
            plain.losses(ids, removed)  # a list of numbers, so this waits for the device
            found.append(time.perf_counter() - start)
        return min(found) * len(window) / ids.shape[1]

    others = tuple(range(1, len(blocks)))
    dense, one = seconds(()), seconds(others)
    block = max(dense - one, 0.0) / max(1, len(others))
    return PassTime(block, max(one - block, 0.0))
