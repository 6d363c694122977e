"""What a block takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from streamliner.errors import UnsupportedModelError


def taken_as(item: Any, following: tuple[tuple[Any, ...], Mapping[str, Any]] | None) -> int | str | None:
    """In which argument the next block takes `item`, if it does."""
    if following is None or not isinstance(item, Tensor):
        return None
    args, kwargs = following
    for position, value in enumerate(args[1:], 1):
        if value is item:
            return position
    return next((name for name, value in kwargs.items() if value is item), None)


def stream_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The residual stream among a block's arguments."""
    stream = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(stream, Tensor):
        raise UnsupportedModelError("A block does not take the residual stream as its first argument.")
    return stream


def stream_out(output: Any) -> Tensor:
    """The residual stream in what a block returns."""
    stream = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(stream, Tensor):
        raise UnsupportedModelError("A block does not return the residual stream first.")
    return stream
