"""Run a model with lightweight networks in the places of blocks, or with the networks next to the dense model.

Nothing is stored: a network's input and its target come from the same forward, and blocks after the last target do not
run. So memory does not grow with the data.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import HealingError
from streamliner.heal.adapters import Adapters
from streamliner.heal.gaps import Gap, find_gaps
from streamliner.heal.head import TrainedHead
from streamliner.heal.networks.make import make_networks
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import BlockForward, Blocks
from streamliner.model.handoff import Call, stream_out
from streamliner.model.parts import shared_parameters


@dataclass
class Graft:
    """A dense model with what is trained in it: networks by the block whose place each takes, adapters on others.

    Kept blocks that are trained whole are networks too: copies that start as the blocks are. Gaps are empty without
    `--network`. Blocks in `removed` are bypassed in the healed model. `head` is what runs after the last block,
    if that is trained. A graft that `recomputes` keeps only the inputs of blocks for gradients.
    """

    blocks: Blocks
    gaps: tuple[Gap, ...]
    networks: Mapping[int, nn.Module]
    removed: tuple[int, ...]
    adapters: Adapters | None = None
    head: TrainedHead | None = None
    recomputes: bool = False

    @property
    def kept_blocks(self) -> list[int]:
        """The blocks that stay as they are: neither removed nor replaced by a network."""
        return [index for index in range(len(self.blocks)) if index not in self.removed and index not in self.networks]

    @property
    def stops(self) -> tuple[int, ...]:
        """Depths where streams are compared: behind each gap; without networks behind each run of removed blocks."""
        if self.gaps:
            return tuple(gap.stop for gap in self.gaps)
        return tuple(block + 1 for block in self.removed if block + 1 not in self.removed)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the model is the healed one: removed blocks are bypassed, networks and head in their places."""
        forwards = {index: self.blocks.pass_on(index) for index in self.removed}
        forwards |= {place: self._in_place_of(place) for place in self.networks}
        with ExitStack() as stack:
            stack.enter_context(self.blocks.substituted(forwards))
            if self.recomputes:
                ran = [index for index in range(len(self.blocks)) if index not in self.removed]
                stack.enter_context(self.blocks.substituted({index: self.blocks.recomputed(index) for index in ran}))
            if self.head:
                stack.enter_context(self.head.in_place())
            yield

    @contextmanager
    def next_to_dense(self, stops: set[int]) -> Iterator[dict[int, Tensor]]:
        """While open, networks of gaps with these `stop`s run on the dense stream; yields their outputs, by `stop`."""
        outputs: dict[int, Tensor] = {}
        places = [(index, gap) for gap in self.gaps if gap.stop in stops for index in (gap.start, *gap.places)]
        with self.blocks.substituted({index: self._next_to_block(index, gap, outputs) for index, gap in places}):
            yield outputs

    @property
    def first_changed(self) -> int:
        """The depth up to which the healed model is the dense one; 0 with adapters, which are on all blocks."""
        return 0 if self.adapters else min({*self.removed, *self.networks}, default=0)

    def healed_streams(self, input_ids: Tensor, depths: set[int], start: Tensor | None = None) -> dict[int, Tensor]:
        """The healed model's residual streams at `depths` of the dense model, with gradients.

        With `start`, the dense stream at the depth `first_changed`, the blocks below it do not run again.
        """
        if not depths:
            return {}
        resumed = nullcontext() if start is None else self.blocks.resumed(self.first_changed, start)
        with self.in_place(), resumed:
            return self.blocks.streams(input_ids, depths)

    @torch.no_grad()
    def dense_streams(self, input_ids: Tensor, depths: set[int]) -> dict[int, Tensor]:
        """The dense model's residual streams at `depths`. Blocks after the last of them do not run."""
        with self.adapters.off() if self.adapters else nullcontext():
            return self.blocks.streams(input_ids, depths) if depths else {}

    def logits(self, stream: Tensor, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The healed model's final norm and head (`Blocks.logits`), with gradients."""
        with self.head.in_place() if self.head else nullcontext():
            return self.blocks.logits(stream, input_ids, positions)

    def _in_place_of(self, place: int) -> BlockForward:
        def forward(call: Call) -> Any:
            out = stream_out(call.run(self.networks[place])).to(call.stream.dtype)
            return self.blocks.hand_on(place, out, call)

        return forward

    def _next_to_block(self, index: int, gap: Gap, outputs: dict[int, Tensor]) -> BlockForward:
        """Run block `index`, and next to it the part of the gap's network in this place."""
        original = self.blocks.modules[index].forward

        def forward(call: Call) -> Any:
            if index == gap.start:
                outputs[gap.stop] = call.stream
            if index in gap.places:
                with torch.enable_grad():
                    outputs[gap.stop] = stream_out(call.with_stream(outputs[gap.stop]).run(self.networks[index]))
            return call.run(original)

        return forward


def make_graft(blocks: Blocks, removed: tuple[int, ...], settings: HealSettings) -> Graft:
    """Lightweight networks for the runs of removed blocks of a dense model, which is frozen; adapters come later.

    Raises HealingError if the architecture has no place for networks, or blocks that are to change share weights.
    """
    graft = Graft(blocks, (), {}, removed, recomputes=settings.gradient_checkpointing or blocks.offloaded)
    if settings.network != "none" or settings.stream_losses:
        check_one_stream(blocks)
    if settings.network != "none":
        graft.gaps = find_gaps(removed, len(blocks), settings.network_depth)
        places = [place for gap in graft.gaps for place in gap.places]
        check_not_shared(blocks, places, removed)
        blocks.bring(places)
        graft.networks = make_networks(blocks, graft.gaps, settings)
    if settings.whole_blocks:
        last = graft.kept_blocks[-settings.whole_blocks :]
        check_not_shared(blocks, last, removed)
        blocks.bring(last)
        whole = {place: copy.deepcopy(blocks.modules[place]).float().requires_grad_(True) for place in last}
        graft.networks = {**graft.networks, **whole}
    if settings.lora:
        check_not_shared(blocks, graft.kept_blocks, removed)
    graft.head = TrainedHead(blocks) if settings.train_head else None
    return graft


def check_one_stream(blocks: Blocks) -> None:
    """Raise HealingError if blocks exchange more than one residual stream, or do not all run on text."""
    if blocks.hands_on_state or blocks.unread or not blocks.plain_stream:
        raise HealingError(
            f"In {type(blocks.model).__name__} more than one residual stream passes between blocks, or text does "
            "not run through all of them: a network cannot take the place of a block.",
            "Heal it with --network none --lora 16 --loss kd.",
        )


def check_not_shared(blocks: Blocks, changed: list[int], removed: tuple[int, ...]) -> None:
    """Raise HealingError if a block whose weights will change shares some with another block that stays."""
    for places in shared_parameters(blocks.modules):
        sharing = sorted({index for index, _ in places if index not in removed})
        if len(sharing) > 1 and set(sharing) & set(changed):
            raise HealingError(
                f"Blocks {', '.join(map(str, sharing))} share weights, so training one would change the others.",
                "Choose a plan whose networks take the places of other blocks.",
            )
