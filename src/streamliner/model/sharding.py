"""Blocks whose frozen weights are divided among processes, with FSDP2: each is gathered for the time that it runs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from streamliner.model.compat import forget_sharding
from streamliner.runs.ranks import WAIT


def shard(blocks: Iterable[nn.Module], device: torch.device) -> tuple[int, int]:
    """Divide the weights of blocks among all processes, of which each keeps its part on its device.

    Nobody may train these weights, and no parameter may be in two blocks. From then on all processes must run the same
    blocks in the same order. Returns the bytes that this process keeps, and those of the whole blocks.
    """
    # A group of its own: DDP adds up gradients while blocks are gathered, and the order of both may differ by process.
    mesh = DeviceMesh.from_group(torch.distributed.new_group(timeout=WAIT), device.type)
    kept = whole = 0
    for block in blocks:
        unit = _Unit(block)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        block.forward = unit.__call__  # type: ignore[method-assign]
        for parameter in block.parameters():
            assert isinstance(parameter, DTensor)
            whole += parameter.numel() * parameter.element_size()
            kept += parameter.to_local().nbytes
    return kept, whole


def gather(blocks: Iterable[nn.Module], *, keep: bool) -> None:
    """Undo `shard`: the blocks get their whole weights, in CPU memory, in the processes that `keep` them.

    All processes must call it. In the others the blocks cannot run any more.
    """
    for block in blocks:
        del block.forward  # the attribute that hides the method of the class
        places = [(module, *named) for module in block.modules() for named in module.named_parameters(recurse=False)]
        divided = {id(each): each for _, _, each in places if isinstance(each, DTensor)}  # all but adapters
        whole = {key: each.full_tensor() for key, each in divided.items()}
        if keep:
            new = {key: nn.Parameter(values.cpu(), requires_grad=False) for key, values in whole.items()}
            for module, name, parameter in places:
                if id(parameter) in new:
                    setattr(module, name, new[id(parameter)])
            for module in block.modules():
                forget_sharding(module)


def sharded_names(module: nn.Module) -> list[str]:
    """Names of the parameters that are divided among processes."""
    return [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]


def move_others(model: nn.Module, device: torch.device) -> None:
    """Move all that is not divided among processes."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


class _Unit(nn.Module):
    """A block as FSDP2 takes it.

    FSDP2 gathers weights whenever a module is called, but bypassed blocks are called too, for each piece of the logits.
    So the block is not wrapped, but its forward: what runs in place of that gathers nothing.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self._run = block, block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block's own forward; its weights are gathered."""
        return self._run(*args, **kwargs)
