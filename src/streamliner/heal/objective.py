"""Token windows -> loss, as one module, so that accelerate can wrap it on any devices."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.heal.adapters import Adapters
from streamliner.heal.graft import Graft
from streamliner.heal.losses import head_losses, stream_loss
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.text.chat import counted, token_ids


class Objective(nn.Module):
    """The weighted sum of the losses of a graft, which gets adapters if the settings ask for them.

    Stream losses leave out the positions before `first`: what the tokenizer puts before a text.
    """

    def __init__(self, graft: Graft, settings: HealSettings, *, first: int) -> None:
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
        self._answers_only = settings.answers_only

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
            head, dense_head = (partial(_logits, of, input_ids) for of in (graft, blocks))
            which = counted(windows) if self._answers_only else None
            options = self._head_options | {"weights": self._of_head, "counted": which}
            if self.head is not None:
                options |= {"dense_head": dense_head, "head_parameters": tuple(self.head.parameters())}
            loss, of_head = head_losses(*ends, input_ids, head, **options)
            parts |= of_head
            total = total + loss.to(device)
        return total, parts


def _logits(of: Graft | Blocks, input_ids: Tensor, stream: Tensor, positions: Tensor) -> Tensor:
    return of.logits(stream, input_ids, positions)


def reaches_all(objective: Objective) -> bool:
    """Whether the losses of two equal tokens, which few experts see, reach all that is trained."""
    blocks = objective.graft.blocks
    with torch.autocast(blocks.device.type, torch.bfloat16):
        objective(torch.full((1, 2), 2, device=blocks.device))[0].backward()
    every = [parameter.grad is not None for parameter in objective.trainable().values()]
    objective.zero_grad(set_to_none=True)
    return all(every)
