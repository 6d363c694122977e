"""Parameters that several blocks share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

Place = tuple[int, str]
"""Index of a block, and a parameter's name within it."""


def shared_parameters(blocks: Iterable[nn.Module]) -> list[list[Place]]:
    """The places of each parameter that is in more than one place."""
    places: dict[int, list[Place]] = {}
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append((index, name))
    return [each for each in places.values() if len(each) > 1]
