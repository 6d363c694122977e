"""One fold of one block on the tokens of windows, in a model whose other blocks are as they are at that time."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from streamliner.heal.folds.fold import Fold
from streamliner.heal.folds.gain import through_norm
from streamliner.heal.graft import Graft

SINK = 8.0
"""A token whose stream is longer than this many times the median is an attention sink."""


@dataclass(frozen=True)
class Fit:
    """A fold of the block at `block` of a graft, whose `networks` has the changed copy there.

    The healed stream at `depth` is to be as the dense model's. Windows are token ids of shape (1, tokens), with the
    healed stream before the block; None for block 0, which makes its own.
    """

    graft: Graft
    block: int
    depth: int
    method: Fold

    @torch.no_grad()
    def add(self, ids: Tensor, state: Tensor | None, dense: Tensor) -> None:
        """Add the tokens of a window, with the dense stream at the depth."""
        (given, made), normed, own = self._run(ids, state)
        features, last = self.method.features(given, made), self.method.last
        targets = (dense[0].float() - own[0].float()) / last.scale
        if last.norm and normed is not None:
            features, targets = through_norm(last.norm, self.method.network, made, normed, features, targets)
        # A sink's stream is hundreds of times longer, and would rule the sums. Left out, it would be spoiled where this
        # block makes it, as its input is far from all others. So it counts as a token of ordinary length.
        lengths = dense[0].float().norm(dim=1, keepdim=True)
        share = torch.where(lengths > SINK * lengths.median(), lengths.median() / lengths, 1.0)
        self.method.add(share * features, share * targets)

    @torch.no_grad()
    def given(self, ids: Tensor, state: Tensor | None) -> Tensor:
        """What the map or part that the fold watches is given: (tokens, channels)."""
        return self._run(ids, state)[0][0]

    def _run(self, ids: Tensor, state: Tensor | None) -> tuple[tuple[Tensor, Tensor], Tensor | None, Tensor]:
        """What the watched part is given and makes, what a norm after that writes, and the stream at the depth."""
        calls: list[tuple[Tensor, Tensor]] = []
        normed: list[Tensor] = []
        norm = self.method.last.norm
        with (
            self.method.watched(lambda *call: calls.append(call)),
            norm.watched(self.method.network, lambda _, made: normed.append(made)) if norm else nullcontext(),
            self.graft.in_place(),
            nullcontext() if state is None else self.graft.blocks.resumed(self.block, state),
        ):
            own = self.graft.blocks.streams(ids, {self.depth})[self.depth]
        given, made = (tensor.reshape(ids.shape[1], -1).float() for tensor in calls[-1])
        return (given, made), normed[-1].reshape(made.shape).float() if normed else None, own
