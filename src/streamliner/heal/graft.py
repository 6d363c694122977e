"""Run a model with lightweight networks in the places of blocks, and networks beside the dense model.

Nothing is stored: target and input of a network come from the same forward, and blocks behind the last target do not
run. Memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.heal.gaps import Gap
from streamliner.model.blocks import Blocks, ForwardFunction
from streamliner.model.handoff import stream_in, stream_out


class Graft:
    """A dense model, the gaps in it, and a network for each.

    Attributes:
        blocks: of the dense model.
        gaps: where networks go; with none, `removed` are bypassed and no more.
        networks: by the block whose place each takes.
        removed: blocks that are gone.
    """

    def __init__(
        self, blocks: Blocks, gaps: Sequence[Gap], networks: Mapping[int, nn.Module], removed: tuple[int, ...]
    ) -> None:
        self.blocks, self.gaps, self.networks, self.removed = blocks, tuple(gaps), networks, removed

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the model is the healed one: removed blocks are bypassed, networks run in their places."""
        forwards = {index: self.blocks.pass_on(index) for index in self.removed}
        forwards |= {place: self._network_forward(place) for place in self.networks}
        with self.blocks.replaced(forwards):
            yield

    def _network_forward(self, place: int) -> ForwardFunction:
        def forward(*args: Any, **kwargs: Any) -> Any:
            out = stream_out(self.networks[place](*args, **kwargs)).to(stream_in(args, kwargs).dtype)
            return self.blocks.hand_on(place, out, args, kwargs)

        return forward

    def beside(self, input_ids: Tensor, *, depth: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Run the dense model to `depth`, and each network beside it on the dense stream where its gap starts.

        Args:
            input_ids: (windows, tokens).
            depth: at least the last gap's stop; blocks behind it do not run.

        Returns:
            For each gap what the network put out, with gradients, and the dense stream at the gap's stop without; and
            the dense stream at `depth`. All are (windows, tokens, hidden).
        """
        outputs: dict[int, Tensor] = {}

        def beside_block(index: int, gap: Gap) -> ForwardFunction:
            original = self.blocks.modules[index].forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                if index == gap.start:
                    outputs[gap.stop] = stream_in(args, kwargs)
                if index in gap.places:
                    with torch.enable_grad():
                        outputs[gap.stop] = _called_with(self.networks[index], outputs[gap.stop], args, kwargs)
                return original(*args, **kwargs)

            return forward

        forwards = {index: beside_block(index, gap) for gap in self.gaps for index in (gap.start, *gap.places)}
        with self.blocks.replaced(forwards):
            targets = self.dense_streams(input_ids, {gap.stop for gap in self.gaps} | {depth})
        return [(outputs[gap.stop], targets[gap.stop]) for gap in self.gaps], targets[depth]

    @torch.no_grad()
    def dense_streams(self, input_ids: Tensor, depths: set[int]) -> dict[int, Tensor]:
        """The dense residual streams at `depths`; blocks behind the last of them do not run."""
        return self.blocks.streams(input_ids, depths)

    def healed_streams(self, input_ids: Tensor, depths: set[int]) -> dict[int, Tensor]:
        """The healed model's own residual streams at `depths` of the dense model, with gradients."""
        with self.in_place():
            return self.blocks.streams(input_ids, depths)


def _called_with(network: nn.Module, stream: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """`network` on `stream`, with all else that a block was called with."""
    if args:
        return stream_out(network(stream, *args[1:], **kwargs))
    return stream_out(network(**{**kwargs, "hidden_states": stream}))
