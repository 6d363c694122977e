"""The logits of a part of the vocabulary, by the rows of the head's matrix that belong to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import MISFITS, UnsupportedModelError, is_of_device
from streamliner.model.blocks import ROUNDING, Blocks


class HeadRows:
    """The head of a model, which can be narrowed to the rows of some tokens.

    Raises UnsupportedModelError if the logits are not those of the rows of one matrix, which is tried out on four
    tokens: a head that is the embeddings too, or that mixes logits.

    Attributes:
        count: number of rows, the size of the vocabulary.
    """

    def __init__(self, blocks: Blocks) -> None:
        model: Any = blocks.model
        self._head = model.get_output_embeddings()
        weight = getattr(self._head, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.is_meta or self._head is model.get_input_embeddings():
            raise _unfit(blocks)
        self.count = len(weight)
        self._check(blocks)

    @contextmanager
    def only(self, tokens: Tensor) -> Iterator[None]:
        """While open, the model's logits are those of these token ids, in this order. The head must be frozen."""
        head, rows = self._head, {}
        for name in ("weight", "bias"):
            if (whole := getattr(head, name, None)) is not None:
                rows[name] = whole
                part = whole.detach()[tokens.to(whole.device)]
                setattr(head, name, nn.Parameter(part, requires_grad=False))
        try:
            yield
        finally:
            for name, whole in rows.items():
                setattr(head, name, whole)

    @torch.no_grad()
    def _check(self, blocks: Blocks) -> None:
        """Raise UnsupportedModelError unless some rows alone have the logits that they have among all."""
        tokens = torch.tensor([self.count - 1, 2, 0, 1], device=blocks.device) % self.count
        input_ids = tokens[None]
        stream = blocks.streams(input_ids, {len(blocks)})[len(blocks)]
        positions = torch.tensor([3, 0, 1, 2], device=stream.device)
        whole, some = blocks.logits(stream, input_ids, positions), None
        with self.only(tokens):
            try:
                some = blocks.logits(stream, input_ids, positions)
            except MISFITS as error:
                if is_of_device(error):
                    raise
        if some is None or whole.shape[-1] != self.count or some.shape[-1] != len(tokens):
            raise _unfit(blocks)
        allowed = ROUNDING.get(whole.dtype, 1e-5) * max(1.0, whole.abs().max().item())
        if not (whole[..., tokens.to(whole.device)] - some).abs().max().item() <= allowed:
            raise _unfit(blocks)


def _unfit(blocks: Blocks) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The logits of {type(blocks.model).__name__} cannot be computed for a part of the vocabulary.",
        "Leave out --sampled-softmax.",
    )
