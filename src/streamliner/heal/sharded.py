"""A graft over several processes, of which each holds a part of the frozen blocks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamliner.format import human_bytes
from streamliner.heal.graft import Graft
from streamliner.model.blocks import Blocks
from streamliner.model.devices import free_and_total
from streamliner.model.parts import weight_bytes
from streamliner.model.sharding import gather, move_others, shard
from streamliner.runs.reporter import Reporter


@contextmanager
def sharded(graft: Graft, device: torch.device, reporter: Reporter, *, keep: bool) -> Iterator[None]:
    """While open, the blocks of the dense model are divided among all processes, and run on `device`.

    What is trained is whole in each process. All processes must open it, and run the same forwards. Afterwards those
    that `keep` it have the whole model: on `device` if that has room for two of it, otherwise on the CPU.
    """
    modules = graft.blocks.modules
    part, whole = shard(modules, device)
    _move(graft, device)
    reporter.say(f"Each process holds {human_bytes(part)} of the {human_bytes(whole)} of the dense model's blocks.")
    yield
    gather(modules, keep=keep)
    if keep:
        free, _ = free_and_total(device) or (None, 0)
        _move(graft, device if 2 * weight_bytes(graft.blocks.model) < (free or 0) else torch.device("cpu"))


def _move(graft: Graft, device: torch.device) -> None:
    """Bring all that is not divided to a device."""
    move_others(graft.blocks.model, device)
    for module in (*graft.networks.values(), *([graft.head] if graft.head else [])):
        module.to(device)
    graft.blocks = Blocks(graft.blocks.model)  # it remembers a stream, and its device
