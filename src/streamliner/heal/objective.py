"""Token windows -> loss, as one module, so that accelerate can wrap it on any devices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamliner.heal.adapters import Adapters
from streamliner.heal.graft import Graft
from streamliner.heal.losses import HeadLosses, stream_loss
from streamliner.settings import HealSettings


class Streams(NamedTuple):
    """The residual streams that the losses compare, (windows, tokens, hidden); None or empty if no loss needs them.

    Attributes:
        pairs: for each gap the network's output, with gradients, and its target.
        healed: of the healed model at depth N, with gradients.
        dense: of the dense model at depth N.
    """

    pairs: list[tuple[Tensor, Tensor]]
    healed: Tensor | None
    dense: Tensor | None


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
        self._on_streams, self._of_head = settings.stream_losses, settings.head_losses
        self._network_input, self._top_k = settings.network_input, settings.top_k
        self._stops = {gap.stop for gap in graft.gaps}
        self._last = len(graft.blocks)

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(windows, tokens) -> the loss with gradients, and each part of it by name, without."""
        if not self._on_streams:
            streams = self._run_for_head(input_ids)
        elif self._network_input == "dense":
            streams = self._run_on_dense_input(input_ids)
        else:
            streams = self._run_on_cut_input(input_ids)
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.graft.blocks.stream_device)
        for name, weight in self._on_streams.items():
            loss = self._stream_loss(name, streams.pairs).to(total.device)
            parts[name] = loss.detach()
            total = total + weight * loss
        if streams.healed is not None:
            loss, of_head = self._head_loss(streams.healed, streams.dense, input_ids)
            parts |= of_head
            total = total + loss.to(total.device)
        return total, parts

    def _run_for_head(self, input_ids: Tensor) -> Streams:
        """Without stream losses: both models to their ends, the dense one only if it is compared with."""
        dense = self.graft.dense_streams(input_ids, {self._last})[self._last] if "kd" in self._of_head else None
        healed = self.graft.healed_streams(input_ids, {self._last})[self._last]
        return Streams([], healed, dense)

    def _run_on_dense_input(self, input_ids: Tensor) -> Streams:
        """Each network on the dense model's stream, in one forward; for losses of the head the healed model too."""
        pairs, dense = self.graft.dense_and_networks(input_ids, self._dense_depth)
        healed = self.graft.healed_streams(input_ids, {self._last})[self._last] if self._of_head else None
        return Streams(pairs, healed, dense if "kd" in self._of_head else None)

    def _run_on_cut_input(self, input_ids: Tensor) -> Streams:
        """Each network on the stream that the networks before it made, in one forward of the healed model."""
        dense = self.graft.dense_streams(input_ids, self._stops | {self._dense_depth})
        healed = self.graft.healed_streams(input_ids, self._stops | ({self._last} if self._of_head else set()))
        pairs = [(healed[gap.stop], dense[gap.stop]) for gap in self.graft.gaps]
        return Streams(
            pairs, healed[self._last] if self._of_head else None, dense[self._last] if "kd" in self._of_head else None
        )

    @property
    def _dense_depth(self) -> int:
        """How far the dense model must run."""
        return self._last if "kd" in self._of_head else max(self._stops)

    def _stream_loss(self, name: str, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean over networks: each has a scale of its own, so whole losses are averaged."""
        device = self.graft.blocks.stream_device
        return torch.stack([stream_loss(name, *pair, first=self.skip).to(device) for pair in pairs]).mean()

    def _head_loss(self, healed: Tensor, dense: Tensor | None, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        blocks = self.graft.blocks

        def head(stream: Tensor, positions: Tensor) -> Tensor:
            return blocks.logits(stream, input_ids, positions)

        losses = HeadLosses(head, self._of_head, self._top_k, blocks.config.vocab_size)
        return losses(healed, dense, input_ids)


def make_objective(graft: Graft, settings: HealSettings, *, bos: bool) -> Objective:
    """The losses of a graft, which gets adapters if the settings ask for them; `bos` if windows begin with a BOS.

    Raises:
        HealingError: the blocks have no linear maps for adapters.
    """
    if settings.lora:
        graft.adapters = Adapters(graft.blocks, graft.kept_blocks, settings.lora, settings.seed)
    return Objective(graft, settings, skip=int(bos))
