"""Token windows -> loss, as one module, so that accelerate can wrap it on any devices."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.heal.adapters import Adapters
from streamliner.heal.graft import Graft
from streamliner.heal.losses import head_losses, stream_loss
from streamliner.heal.sampled_softmax import SampledSoftmax
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.text.chat import counted, token_ids


class Objective(nn.Module):
    """The weighted sum of the losses of a graft, which gets adapters if the settings ask for them.

    Stream losses leave out the positions before `first`: what the tokenizer puts before a text. With `sampled`, the
    losses of the head are over a part of the vocabulary where gradients are wanted, and over all of it otherwise.
    """

    def __init__(
        self, graft: Graft, settings: HealSettings, *, first: int, sampled: SampledSoftmax | None = None
    ) -> None:
        super().__init__()
        if settings.lora:
            graft.adapters = Adapters(graft.blocks, graft.kept_blocks, settings.lora, settings.seed)
        self.graft, self._first = graft, first
        self.model = graft.blocks.model
        self.head = graft.head
        self.networks = nn.ModuleDict({str(place): network for place, network in graft.networks.items()})
        self._on_streams, self._of_head = settings.stream_losses, settings.head_losses
        self._head_options: dict[str, Any] = {"top_k": settings.top_k, "vocab_size": graft.blocks.config.vocab_size}
        self._on_dense_input = settings.network_input == "dense"
        self._answers_only, self._sampled = settings.answers_only, sampled

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, windows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(windows, tokens), perhaps with marks -> the loss with gradients, and each part of it by name, without.

        Each network runs next to the dense model on its stream, or in the healed model on what the networks before it
        made (`network_input`). Both models run only as far as the losses need, and what is the same in both models runs
        once. Without networks, streams are compared behind each run of removed blocks.
        """
        graft, blocks, device = self.graft, self.graft.blocks, self.graft.blocks.stream_device
        input_ids = token_ids(windows)
        stops, end = set(graft.stops) if self._on_streams else set(), {len(blocks)}
        healed_at = (set() if self._on_dense_input else stops) | (end if self._of_head else set())
        first = graft.first_changed if healed_at and blocks.forkable else 0
        wanted = stops | (end if "kd" in self._of_head else set()) | ({first} if first else set())
        with graft.next_to_dense(stops if self._on_dense_input else set()) as outputs:
            dense = graft.dense_streams(input_ids, wanted)
        healed = graft.healed_streams(input_ids, healed_at, dense[first] if first else None)
        outputs = outputs or healed
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        for name, weight in self._on_streams.items():
            each = [stream_loss(name, outputs[stop], dense[stop], self._first).to(device) for stop in graft.stops]
            loss = torch.stack(each).mean()  # each depth has a scale of its own, so whole losses are averaged
            parts[name] = loss.detach()
            total = total + weight * loss
        if self._of_head:
            ends = healed[len(blocks)], dense[len(blocks)] if "kd" in self._of_head else None
            loss, of_head = self._head_losses(*ends, input_ids, counted(windows) if self._answers_only else None)
            parts |= of_head
            total = total + loss.to(device)
        return total, parts

    def _head_losses(
        self, stream: Tensor, dense_stream: Tensor | None, input_ids: Tensor, which: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        head, dense_head = (partial(_logits, of, input_ids) for of in (self.graft, self.graft.blocks))
        options = self._head_options | {"weights": self._of_head, "counted": which}
        if self.head is not None:
            options |= {"dense_head": dense_head, "head_parameters": tuple(self.head.parameters())}
        if self._sampled is None or not torch.is_grad_enabled():
            return head_losses(stream, dense_stream, input_ids, head, **options)
        with self._sampled.drawn_for(input_ids) as drawn:
            options["vocab_size"] = len(drawn.tokens)
            corrected = partial(_logits, self.graft, input_ids, correction=drawn.correction)
            return head_losses(stream, dense_stream, drawn.windows, corrected, **options)


def _logits(
    of: Graft | Blocks, input_ids: Tensor, stream: Tensor, positions: Tensor, *, correction: Tensor | None = None
) -> Tensor:
    logits = of.logits(stream, input_ids, positions)
    return logits if correction is None else logits + correction.to(logits)


def reaches_all(objective: Objective) -> bool:
    """Whether the losses of two equal tokens, which few experts see, reach all that is trained."""
    blocks = objective.graft.blocks
    with torch.autocast(blocks.device.type, torch.bfloat16):
        objective(torch.full((1, 2), 2, device=blocks.device))[0].backward()
    every = [parameter.grad is not None for parameter in objective.trainable().values()]
    objective.zero_grad(set_to_none=True)
    return all(every)
