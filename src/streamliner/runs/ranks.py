"""The processes of one run under `accelerate launch` or `torchrun`. Each has a number, its rank."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from streamliner.errors import UserError

WAIT = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. With a single process all of this does nothing."""

    rank: int = 0  # the number of this process, 0 to size - 1
    size: int = 1  # the number of processes
    device: torch.device | str = "cpu"  # where tensors must be so that processes can add them up

    def share(self, count: int) -> range:
        """The indices below `count` that are this process's part: every `size`-th from `rank` on."""
        return range(self.rank, count, self.size)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, on the CPU. All processes must call it."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def of_first(self, value: float) -> float:
        """What the first process has for `value`, in all of them. All processes must call it."""
        return self.total(torch.tensor(0.0 if self.rank else value, dtype=torch.float64)).item()

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.total(torch.zeros(1))


def check_alone(verb: str) -> None:
    """Raise UserError if a launcher started several processes of a verb that is for one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"streamliner {verb} is for one process.", "Start it without torchrun or accelerate launch.")


def find_ranks(device: str | None = None) -> Ranks:
    """The processes that the launcher started; a single one without a launcher. `device` is the user's choice."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    from accelerate import PartialState

    # One process may verify for long while the others wait for it; ten minutes are the default.
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=WAIT)
    return Ranks(state.process_index, state.num_processes, state.device)
