"""What a block takes and returns, and how blocks pass the residual stream on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamliner.errors import UnsupportedModelError

ArgumentKey = int | str
"""Position or name of an argument."""


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
        return Call(tuple(map(_float, self.args)), {name: _float(value) for name, value in self.kwargs.items()})

    def find(self, item: Any) -> ArgumentKey | None:
        """The argument besides the stream that is this very tensor, if there is one."""
        if not isinstance(item, Tensor):
            return None
        for position, value in enumerate(self.args[1:], 1):
            if value is item:
                return position
        return next((name for name, value in self.kwargs.items() if value is item), None)

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
    """How a block returns the residual stream, and where the next block takes what comes with it.

    Attributes:
        make: makes what the block returns from a list of the stream and further items: `tuple`, `list`, or `_make` of
            a named tuple. None if the block returns the bare stream.
        arrives_at: for each further item, the argument in which the next block takes it; None if it takes it nowhere.
    """

    make: Callable[[list[Any]], Any] | None = None
    arrives_at: tuple[ArgumentKey | None, ...] = ()

    @classmethod
    def of(cls, output: Any, following: Call | None) -> Handoff:
        """Of a block that returned `output`, and the call of the next block; None after the last block."""
        if not isinstance(output, (tuple, list)):
            return cls()
        make = getattr(type(output), "_make", type(output))
        return cls(make, tuple(following.find(item) if following else None for item in output[1:]))

    @property
    def has_state(self) -> bool:
        """Whether state goes from block to block besides the stream."""
        return any(key is not None for key in self.arrives_at)

    @property
    def further_items(self) -> int | None:
        """How many items the block returns after the stream; None for a bare stream."""
        return None if self.make is None else len(self.arrives_at)

    def bypassed(self, stream: Tensor, call: Call) -> Any:
        """What the block returns if `stream` is its output and the state that it was called with is unchanged."""
        return stream if self.make is None else self.make([stream, *map(call.get, self.arrives_at)])

    def stateless(self, stream: Tensor) -> Any:
        """What the block returns if `stream` is its output and there is no state."""
        return stream if self.make is None else self.make([stream, *(None for _ in self.arrives_at)])
