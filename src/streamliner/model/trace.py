"""One forward of the model, recorded: what each block was called with and what it returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import UnsupportedModelError
from streamliner.model.handoff import Call, Handoff, stream_out
from streamliner.model.stack import Stack

RESCALED = "Set rescale_every to 0 in its config.json: the model is the same but for rounding, and has plain blocks."


@dataclass
class BlockRun:
    """One run of a block."""

    index: int
    call: Call
    output: Any = None

    @property
    def stream(self) -> Tensor:
        """The residual stream after the block."""
        return stream_out(self.output)


def trace(modules: Iterable[nn.Module], forward: Callable[[], object]) -> list[BlockRun]:
    """The runs of blocks during `forward()`, in order. Nothing is recorded for gradients."""
    runs: list[BlockRun] = []

    def before(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs: runs.append(BlockRun(index, Call(args, kwargs)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        runs[-1].output = output

    with ExitStack() as stack:
        for index, module in enumerate(modules):
            stack.callback(module.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        with torch.no_grad():  # not inference mode: what a model caches here may later be trained through
            forward()
    return runs


def check_plain(runs: list[BlockRun], stack: Stack, model_name: str) -> None:
    """Check that each block ran at most once, in order, on what the block before it returned.

    Raises:
        UnsupportedModelError: otherwise.
    """
    order = [run.index for run in runs]
    if order != sorted(set(order)) or not order:
        raise UnsupportedModelError(f"{model_name} does not run the blocks of {stack.path} once each, in order.")
    streams = [(run.index, run.call.stream, run.stream) for run in runs]
    for (index, _, returned), (_, taken, _) in pairwise(streams):
        if returned.shape != taken.shape or not torch.equal(returned.to(taken.device), taken):
            raise UnsupportedModelError(
                f"In {model_name} the input of block {index + 1} is not the output of block {index}: "
                f"{stack.path} is not a plain stack.",
                RESCALED if getattr(stack.config, "rescale_every", 0) else "",
            )


def find_handoffs(runs: list[BlockRun], num_blocks: int) -> list[Handoff]:
    """How each block passes the stream on. Blocks that did not run return the bare stream."""
    handoffs = [Handoff()] * num_blocks
    for run, following in pairwise([*runs, None]):
        assert run is not None
        handoffs[run.index] = Handoff.of(run.output, following.call if following else None)
    last = runs[-1].index
    before = handoffs[last - 1] if last else Handoff()
    if handoffs[last].further_items == before.further_items:
        # No block follows that would show where the items of the last one arrive.
        handoffs[last] = replace(handoffs[last], arrives_at=before.arrives_at)
    return handoffs
