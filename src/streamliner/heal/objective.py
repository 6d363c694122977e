"""Token windows -> loss, as one module, so that accelerate can wrap it whatever the devices."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from streamliner.errors import HealingError
from streamliner.heal.adapters import adapters_off, add_adapters
from streamliner.heal.gaps import Gap, find_gaps
from streamliner.heal.graft import Graft
from streamliner.heal.losses import head_losses, stream_loss
from streamliner.heal.networks.make import make_networks
from streamliner.heal.settings import HealSettings
from streamliner.model.blocks import Blocks


class Objective(nn.Module):
    """The weighted sum of losses of a graft.

    Attributes:
        graft: the dense model with networks.
        skip: positions at the start of each window that stream losses leave out: 1 for a BOS.
    """

    def __init__(self, graft: Graft, settings: HealSettings, skip: int) -> None:
        super().__init__()
        self.graft, self.skip = graft, skip
        self.settings = settings
        self.model = graft.blocks.model
        self.networks = nn.ModuleDict({str(place): network for place, network in graft.networks.items()})

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(windows, tokens) -> the loss with gradients, and each part of it, by name, without."""
        graft, settings = self.graft, self.settings
        on_streams, through_head = settings.on_streams, settings.through_head
        last = len(graft.blocks)
        stops = {gap.stop for gap in graft.gaps}
        need_dense = last if "kd" in through_head else max(stops, default=0)
        pairs: list[tuple[Tensor, Tensor]] = []
        dense_stream: Tensor | None = None
        healed: dict[int, Tensor] = {}
        with adapters_off(graft.blocks) if settings.lora else nullcontext():
            if on_streams and settings.network_input == "dense":
                pairs, dense_stream = graft.beside(input_ids, depth=need_dense)
            elif on_streams or "kd" in through_head:
                targets = graft.dense_streams(input_ids, stops | {need_dense} if on_streams else {need_dense})
                dense_stream = targets[need_dense]
        if through_head or settings.network_input == "cut":
            own = stops if on_streams and settings.network_input == "cut" else set()
            healed = graft.healed_streams(input_ids, own | ({last} if through_head else set()))
            if own:
                pairs = [(healed[gap.stop], targets[gap.stop]) for gap in graft.gaps]
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=graft.blocks.stream_device)
        for name, weight in on_streams.items():
            # Each network has its own scale, so the mean over networks is of whole losses.
            loss = torch.stack([stream_loss(name, *pair, first=self.skip).to(total.device) for pair in pairs]).mean()
            parts[name] = loss.detach()
            total = total + weight * loss
        if through_head:
            loss, more = head_losses(
                lambda stream, positions: graft.blocks.logits(stream, input_ids, positions),
                healed[last],
                dense_stream if "kd" in through_head else None,
                input_ids,
                through_head,
                settings.top_k,
                graft.blocks.config.vocab_size,
            )
            parts |= more
            total = total + loss.to(total.device)
        return total, parts


def make_objective(blocks: Blocks, removed: tuple[int, ...], settings: HealSettings, *, bos: bool) -> Objective:
    """What is to be trained in a dense model: networks for the runs of `removed`, adapters on other blocks that stay.

    Args:
        blocks: of the dense model, frozen; adapters go into it.
        removed: by the plan.
        settings: network and losses.
        bos: whether windows begin with a BOS, which stream losses leave out.

    Raises:
        HealingError: the architecture has no place for networks.
        RemovalError: see `find_gaps`.
    """
    if settings.network == "none":
        gaps: tuple[Gap, ...] = ()
        networks: dict[int, nn.Module] = {}
    else:
        if blocks.hands_on_state or blocks.unread or not blocks.plain_stream:
            raise HealingError(
                f"In {type(blocks.model).__name__} blocks hand on more than one residual stream, or do not all run on "
                "text: a network in a block's place would not do what it does.",
                "Heal it with --network none --lora 16 --loss kd.",
            )
        gaps = find_gaps(removed, len(blocks), settings.network_depth)
        _check_not_shared(blocks, [place for gap in gaps for place in gap.places], removed)
        networks = make_networks(
            blocks, gaps, settings.network, init=settings.init, residual=settings.residual, seed=settings.seed
        )
    if settings.lora:
        others = [index for index in range(len(blocks)) if index not in removed and index not in networks]
        _check_not_shared(blocks, others, removed)
        add_adapters(blocks, others, settings.lora, settings.seed)
    return Objective(Graft(blocks, gaps, networks, removed), settings, skip=int(bos))


def _check_not_shared(blocks: Blocks, changed: list[int], removed: tuple[int, ...]) -> None:
    """Raise HealingError if a block whose weights will change shares some with another that stays."""
    homes: dict[int, set[int]] = {}
    for index, block in enumerate(blocks.modules):
        if index not in removed:
            for parameter in block.parameters():
                homes.setdefault(id(parameter), set()).add(index)
    shared = next((sorted(each) for each in homes.values() if len(each) > 1 and each & set(changed)), None)
    if shared:
        raise HealingError(
            f"Blocks {', '.join(map(str, shared))} share weights, so training one would change the others.",
            "Choose a plan whose networks take the places of other blocks.",
        )
