"""Run a model with lightweight networks in the places of blocks, and networks beside the dense model.

Nothing is stored: target and input of a network come from the same forward, and blocks behind the last target do not
run. Memory does not grow with the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.blocks import Blocks, ForwardFunction, stream_in, stream_out
from streamliner.heal.gaps import Gap


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
        self.keeps = "logits_to_keep" in inspect.signature(blocks.model.forward).parameters
        # One position, picked by a tensor: as a slice it would make torch copy the head's weights in bfloat16.
        self._few_logits: dict[str, Any] = {"logits_to_keep": torch.tensor([0])} if self.keeps else {}

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
        gap_of = {place: gap for gap in self.gaps for place in gap.places}

        def both(place: int, original: ForwardFunction) -> ForwardFunction:
            gap = gap_of[place]

            def forward(*args: Any, **kwargs: Any) -> Any:
                stream = stream_in(args, kwargs) if place == gap.places[0] else outputs[gap.stop]
                if place == gap.places[0] and place != gap.start:
                    stream = starts[gap.start]
                with torch.enable_grad():
                    outputs[gap.stop] = _called_with(self.networks[place], stream, args, kwargs)
                return original(*args, **kwargs)

            return forward

        starts: dict[int, Tensor] = {}
        modules = self.blocks.modules
        forwards = {place: both(place, modules[place].forward) for place in gap_of}
        wanted = {gap.start for gap in self.gaps if gap.places[0] != gap.start}
        with self.blocks.replaced(forwards):
            targets = self.dense_streams(input_ids, {gap.stop for gap in self.gaps} | {depth} | wanted, starts)
        return [(outputs[gap.stop], targets[gap.stop]) for gap in self.gaps], targets[depth]

    @torch.no_grad()
    def dense_streams(
        self, input_ids: Tensor, depths: set[int], found: dict[int, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """The dense residual streams at `depths`; blocks behind the last of them do not run."""
        found = {} if found is None else found
        self._run(input_ids, depths, found)
        return found

    def healed_streams(self, input_ids: Tensor, depths: set[int]) -> dict[int, Tensor]:
        """The healed model's own residual streams at `depths` of the dense model, with gradients."""
        found: dict[int, Tensor] = {}
        with self.in_place():
            self._run(input_ids, depths, found)
        return found

    def _run(self, input_ids: Tensor, depths: set[int], found: dict[int, Tensor]) -> None:
        """The model's forward up to the last of `depths`; the streams at all of them go into `found`."""
        last = max(depths)
        before = self.blocks.modules[last - 1].forward

        def final(*args: Any, **kwargs: Any) -> Any:
            found[last] = stream_out(before(*args, **kwargs))
            # The rest of the model goes on with one window: nobody asks for its logits.
            return self.blocks.hand_on(last - 1, found[last][:1], args, kwargs)

        def note(depth: int, stream: Tensor) -> None:
            if depth in depths and depth < last:
                found[depth] = stream

        forwards = {index: self.blocks.pass_on(index) for index in range(last, len(self.blocks))}
        with self.blocks.replaced(forwards | {last - 1: final}), self.blocks.watch(note):
            self.blocks.forward(input_ids, **self._few_logits)


def _called_with(network: nn.Module, stream: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """`network` on `stream`, with all else that a block was called with."""
    if args:
        return stream_out(network(stream, *args[1:], **kwargs))
    return stream_out(network(**{**kwargs, "hidden_states": stream}))
