"""Token windows -> loss, as one module, so that accelerate can wrap it on any devices."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from streamliner.heal.adapters import Adapters
from streamliner.heal.graft import Graft
from streamliner.heal.losses import HeadLosses, stream_loss
from streamliner.settings import HealSettings


class Objective(nn.Module):
    """The weighted sum of the losses of a graft.

    Attributes:
        graft: the dense model with what is trained in it.
        skip: positions at the start of each window that stream losses leave out: 1 for a BOS.
    """

    def __init__(self, graft: Graft, settings: HealSettings, skip: int) -> None:
        super().__init__()
        self.graft, self.skip = graft, skip
        self.model = graft.blocks.model
        self.networks = nn.ModuleDict({str(place): network for place, network in graft.networks.items()})
        self._on_streams, self._of_head, self._top_k = settings.stream_losses, settings.head_losses, settings.top_k
        self._on_dense_input = settings.network_input == "dense"

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(windows, tokens) -> the loss with gradients, and each part of it by name, without.

        Each network runs next to the dense model on its stream, or in the healed model on what the networks before it
        made (`network_input`). Both models run only as far as the losses need.
        """
        graft, blocks, device = self.graft, self.graft.blocks, self.graft.blocks.stream_device
        stops = {gap.stop for gap in graft.gaps} if self._on_streams else set()
        end = {len(blocks)}
        with graft.next_to_dense() if stops and self._on_dense_input else nullcontext({}) as outputs:
            dense = graft.dense_streams(input_ids, stops | (end if "kd" in self._of_head else set()))
        healed_at = set() if self._on_dense_input else stops
        healed = graft.healed_streams(input_ids, healed_at | (end if self._of_head else set()))
        outputs = outputs or healed
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        for name, weight in self._on_streams.items():
            each = [stream_loss(name, outputs[gap.stop], dense[gap.stop], self.skip).to(device) for gap in graft.gaps]
            loss = torch.stack(each).mean()  # each network has a scale of its own, so whole losses are averaged
            parts[name] = loss.detach()
            total = total + weight * loss
        if self._of_head:

            def head(stream: Tensor, positions: Tensor) -> Tensor:
                return blocks.logits(stream, input_ids, positions)

            losses = HeadLosses(head, self._of_head, self._top_k, blocks.config.vocab_size)
            dense_end = dense[len(blocks)] if "kd" in self._of_head else None
            loss, of_head = losses(healed[len(blocks)], dense_end, input_ids)
            parts |= of_head
            total = total + loss.to(device)
        return total, parts


def make_objective(graft: Graft, settings: HealSettings, *, bos: bool) -> Objective:
    """The losses of a graft, which gets adapters if the settings ask for them; `bos` if windows begin with a BOS.

    Raises:
        HealingError: the blocks have no linear maps for adapters.
    """
    if settings.lora:
        graft.adapters = Adapters(graft.blocks, graft.kept_blocks, settings.lora, settings.seed)
    return Objective(graft, settings, skip=int(bos))
