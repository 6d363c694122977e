"""What a block takes and returns, and how blocks pass the residual stream on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import UnsupportedModelError
from streamliner.model.stack import Stack

ArgumentKey = int | str
"""Position or name of an argument."""
RESCALED = "Set rescale_every to 0 in its config.json: the model is the same but for rounding, and has plain blocks."


@dataclass(frozen=True)
class Call:
    """The arguments that a block is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def stream(self) -> Tensor:
        """The residual stream: the first argument, or `hidden_states`."""
        stream = self.args[0] if self.args else self.kwargs.get("hidden_states")
        if not isinstance(stream, Tensor):
            raise UnsupportedModelError("A block does not take the residual stream as its first argument.")
        return stream

    def with_stream(self, stream: Tensor) -> Call:
        """The same call on another residual stream."""
        if self.args:
            return Call((stream, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, "hidden_states": stream})

    def run(self, function: Callable[..., Any]) -> Any:
        """Call `function` with these arguments."""
        return function(*self.args, **self.kwargs)

    def float(self) -> Call:
        """The same call with floating-point tensors in float32, also those in tuples."""
        return Call(_float(self.args), {name: _float(value) for name, value in self.kwargs.items()})

    def find(self, item: Any) -> ArgumentKey | None:
        """The argument besides the stream that is this very tensor, if there is one."""
        arguments: list[tuple[ArgumentKey, Any]] = [*enumerate(self.args[1:], 1), *self.kwargs.items()]
        return next((key for key, value in arguments if value is item and isinstance(item, Tensor)), None)

    def get(self, key: ArgumentKey | None) -> Any:
        """The argument at `key`, None for no key."""
        if key is None:
            return None
        return self.args[key] if isinstance(key, int) else self.kwargs.get(key)


def _float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_float, value))
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def stream_out(output: Any) -> Tensor:
    """The residual stream in what a block returns."""
    stream = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(stream, Tensor):
        raise UnsupportedModelError("A block does not return the residual stream first.")
    return stream


@dataclass(frozen=True)
class Handoff:
    """How a block returns the residual stream, and where the next block takes what comes with it."""

    # Makes what the block returns from a list of the stream and further items: `tuple`, `list`, or `_make` of a named
    # tuple. None if the block returns the bare stream.
    make: Callable[[list[Any]], Any] | None = None
    # For each further item, the argument in which the next block takes it; None if it takes it nowhere.
    arrives_at: tuple[ArgumentKey | None, ...] = ()

    @classmethod
    def of(cls, output: Any, following: Call | None) -> Handoff:
        """Of a block that returned `output`, and the call of the next block; None after the last block."""
        if not isinstance(output, (tuple, list)):
            return cls()
        make = getattr(type(output), "_make", type(output))
        return cls(make, tuple(following.find(item) if following else None for item in output[1:]))

    @property
    def further_items(self) -> int | None:
        """How many items the block returns after the stream; None for a bare stream."""
        return None if self.make is None else len(self.arrives_at)

    def bypassed(self, stream: Tensor, call: Call) -> Any:
        """What the block returns if `stream` is its output and the state that it was called with is unchanged."""
        return stream if self.make is None else self.make([stream, *map(call.get, self.arrives_at)])


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; values that are not numbers are, too."""
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


@dataclass(frozen=True)
class BlockRun:
    """One run of a block: what it was called with and what it returned."""

    index: int
    call: Call
    output: Any


def trace(modules: Iterable[nn.Module], forward: Callable[[], object]) -> list[BlockRun]:
    """The runs of blocks during `forward()`, in order. Nothing is recorded for gradients."""
    runs: list[BlockRun] = []

    def record(index: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        runs.append(BlockRun(index, Call(args, kwargs), output))

    with ExitStack() as hooks:
        for index, block in enumerate(modules):
            hooks.callback(block.register_forward_hook(partial(record, index), with_kwargs=True).remove)
        with torch.no_grad():  # not inference mode: what a model caches here may later be trained through
            forward()
    return runs


def find_handoffs(runs: list[BlockRun], stack: Stack, model_name: str) -> list[Handoff]:
    """How each block passes the stream on; those that did not run return the bare stream.

    An UnsupportedModelError if a block ran twice, or not in order, or not on what the block before it returned.
    """
    order = [run.index for run in runs]
    if order != sorted(set(order)) or not order:
        raise UnsupportedModelError(
            f"{model_name} does not run the blocks of {stack.path} once each, in order.",
            "It could be built for a loop over blocks: ask for it, with the model's config.json.",
        )
    handoffs = [Handoff()] * len(stack)
    for run, following in pairwise(runs):
        handoffs[run.index] = Handoff.of(run.output, following.call)
        returned, taken = stream_out(run.output), following.call.stream
        if returned.shape != taken.shape or not _same(returned.to(taken.device), taken):
            raise UnsupportedModelError(
                f"In {model_name} the input of block {run.index + 1} is not the output of block {run.index}: "
                f"{stack.path} is not a plain stack.",
                RESCALED if getattr(stack.config, "rescale_every", 0) else "",
            )
    # No block follows the last one that would show where its items arrive: as those of the one before it.
    last, before = Handoff.of(runs[-1].output, None), handoffs[max(0, order[-1] - 1)]
    same = last.further_items == before.further_items
    handoffs[order[-1]] = replace(last, arrives_at=before.arrives_at) if same else last
    return handoffs
