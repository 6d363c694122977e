"""The processes of one run, under `accelerate launch` or `torchrun`: each measures its own windows."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Which process this is of how many. Without others, all of this does nothing.

    Attributes:
        rank: 0 to size - 1.
        size: processes.
        device: where tensors must be to be added up.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"

    def share(self, count: int) -> range:
        """The windows of `count` that this process measures."""
        return range(self.rank, count, self.size)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' `values`, on the CPU. All must call it."""
        if self.size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def wait(self) -> None:
        """Until all processes are here."""
        self.total(torch.zeros(1))


def find_ranks(device: str | None = None) -> Ranks:
    """The processes that the launcher started; one if there was none. `device` is what the user asked for."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return Ranks(state.process_index, state.num_processes, state.device)
