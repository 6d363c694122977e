"""Tensors that must change when a block moves: folds into weights, and tensors with a slice for each block.

A few architectures compute with a block's index. The effect of the index is folded into the weights, so that the block
computes at its new place what it did at its old one. `FOLDS` lists the folds by the attribute in which the index shows.
A block with any other attribute that would change is refused (`structure.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamliner.cut.rules import Removal
from streamliner.errors import UnsupportedModelError

BLOCK_AXIS = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
"""Tensors outside the stack (by the end of their name) with a slice for each block, and the axis: Gemma 3n and 4 keep
token embeddings of each block, which the model views as (..., blocks, size)."""


@dataclass(frozen=True)
class Fold:
    """How weights compensate for an attribute that depends on a block's index.

    `change` maps the tensors that it needs, in float64, to those that change: None for a tensor to remove, new names
    for new tensors.
    """

    needs: tuple[str, ...]  # names of tensors within the module that has the attribute
    change: Callable[[dict[str, Tensor], Change], dict[str, Tensor | None]]
    shows: tuple[str, ...] = ()  # further attributes and shapes of the module that differ for the same reason
    by_index: bool = False  # the module computes with its index while it runs: fold wherever the attribute is set


@dataclass(frozen=True)
class Change:
    """One fold of one block that moves."""

    fold: Fold
    prefix: str  # the module's path within its block with a dot at the end, or ""
    old: int  # the block's index in the dense model
    new: int  # and in the cut model
    removal: Removal
    before: Any  # value of the attribute at the old place
    after: Any  # and at the new one

    def where(self, stack_path: str) -> str:
        """What the names of the module's tensors begin with in the cut model."""
        return f"{stack_path}.{self.new}.{self.prefix}"

    def apply(self, tensors: Mapping[str, Tensor | None], stack_path: str) -> dict[str, Tensor | None]:
        """The cut model's tensors by name -> those that change, in their own dtype; None for a tensor to remove.

        An UnsupportedModelError if a tensor is missing, or is not of floating point.
        """
        where, needed = self.where(stack_path), {}
        for name in self.fold.needs:
            tensor = tensors.get(where + name)
            if tensor is None or not tensor.is_floating_point() or tensor.element_size() < 2:
                raise UnsupportedModelError(
                    f"Block {self.old} computes with its index, so {self.prefix}{name} would have to change, "
                    f"but it is {'missing' if tensor is None else f'of type {tensor.dtype}'}."
                )
            needed[name] = tensor
        dtypes = {name: tensor.dtype for name, tensor in needed.items()}
        usual = next(iter(dtypes.values()), torch.float32)
        changed = self.fold.change({name: tensor.double() for name, tensor in needed.items()}, self)
        return {where + name: t if t is None else t.to(dtypes.get(name, usual)) for name, t in changed.items()}


def block_axis(name: str) -> int | None:
    """The axis along which the tensor has a slice for each block, or None."""
    return next((axis for end, axis in BLOCK_AXIS.items() if name == end or name.endswith("." + end)), None)


def keep_slices(tensor: Tensor, axis: int, removal: Removal) -> Tensor:
    """`tensor` with only the slices of the kept blocks along `axis`; also on the meta device."""
    size = tensor.shape[axis] // removal.num_blocks
    return torch.cat([tensor.narrow(axis, old * size, size) for old in removal.kept], dim=axis)


def scale_queries(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor | None]:
    """GPT-2 divides attention scores by index + 1. The queries, the first third of the columns, compensate."""
    if tensors["c_attn.weight"].shape[1] != 3 * tensors["c_attn.weight"].shape[0]:
        raise UnsupportedModelError("Attention to an encoder divides its scores by the block's index too.")
    ratio = (change.new + 1) / (change.old + 1)
    hidden = tensors["c_attn.bias"].shape[0] // 3
    return {name: torch.cat([t[..., :hidden] * ratio, t[..., hidden:]], dim=-1) for name, t in tensors.items()}


def shift_lambda(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor | None]:
    """DiffLlama weights its second attention map, and its output, by init = lambda_init(index):

        (1 - init) * norm(map1 - (exp(q1 . k1) - exp(q2 . k2) + init) * map2) -> o_proj

    With a new init, exp(q1 . k1) takes up the difference and o_proj the quotient of (1 - init). init grows with the
    index and no index grows, so the logarithm below is of a positive number.
    """
    q1, k1, out = tensors["lambda_q1"], tensors["lambda_k1"], tensors["o_proj.weight"]
    product = math.log(math.exp((q1 * k1).sum().item()) + change.before - change.after)
    return {
        "lambda_q1": torch.full_like(q1, product / len(q1)),
        "lambda_k1": torch.ones_like(k1),
        "o_proj.weight": out * (1 - change.before) / (1 - change.after),
    }


def scale_branches(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor | None]:
    """Beam adds branch h to stream x as x * sqrt((a - 1) / a) + h / sqrt(a), with a = 2 * index + 2, then a + 1.

    With other values of a, the stream is k times as large as before, where k is a product over the blocks so far. The
    branches and the final norm see the stream through an RMS norm, which removes k. So it is enough to scale the last
    norm of each branch, which keeps its share in the stream.
    """

    def stream(a: int) -> float:
        return math.sqrt((a - 1) / a)

    k = 1.0
    for new, old in enumerate(change.removal.kept[: change.new]):
        for step in (2, 3):
            k *= stream(2 * new + step) / stream(2 * old + step)
    changed = dict[str, Tensor | None]()
    for step, name in ((2, "post_attention_layernorm.weight"), (3, "post_feedforward_layernorm.weight")):
        old, new = 2 * change.old + step, 2 * change.new + step
        k *= stream(new) / stream(old)
        changed[name] = tensors[name] * (k * math.sqrt(new / old))
    return changed


def add_zero_bias(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor | None]:
    """GPT-NeoX Japanese: only the last block has a bias after its attention; one that becomes the last gets zeros."""
    return {"dense_bias": tensors["dense.weight"].new_zeros(len(tensors["dense.weight"]))}


def drop_router_scale(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor | None]:
    """Zaya: a router adds the scaled scores of the block before; the first block has none before it and no scale."""
    return {"router_states_scale": None}


def no_change(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor | None]:
    """The attribute has no effect on the tensors, which come along with the block."""
    return {}


FOLDS: dict[str, Fold] = {
    "scale_attn_by_inverse_layer_idx": Fold(
        ("c_attn.weight", "c_attn.bias"), scale_queries, shows=("scaling",), by_index=True
    ),
    "lambda_init": Fold(("lambda_q1", "lambda_k1", "o_proj.weight"), shift_lambda),
    "attn_residual_add_idx": Fold(
        ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"),
        scale_branches,
        shows=("mlp_residual_add_idx",),
        by_index=True,
    ),
    "use_bias": Fold(("dense.weight",), add_zero_bias, shows=("dense_bias.shape",)),
    "use_eda": Fold((), drop_router_scale, shows=("router_states_scale.shape",)),
    # MiniMax: how fast linear attention forgets depends on depth; the buffers are saved with the weights.
    "num_hidden_layers": Fold(("slope_rate", "query_decay", "key_decay", "diagonal_decay"), no_change),
    # Gemma 3n and 4 flag blocks whose keys and values later blocks use; `rules.py` refuses to remove them.
    "store_full_length_kv": Fold((), no_change),
    # BigBird: the index is the seed of random sparse attention, in training only.
    "attention.seed": Fold((), no_change),
    "attention.self.seed": Fold((), no_change),
}
"""Attribute of a module in a block -> how its weights compensate for it."""
