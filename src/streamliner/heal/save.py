"""Write the healed checkpoint: a stock one where the architecture can express the networks, else one with own code."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streamliner.cut.checkpoint import WEIGHT_SUFFIXES
from streamliner.cut.memory import cut_model
from streamliner.cut.rules import Removal
from streamliner.errors import VerificationError
from streamliner.heal import custom_code
from streamliner.heal.adapters import merge_adapters
from streamliner.heal.graft import Graft
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.stock import as_stock_block, carried_for_nothing
from streamliner.model.blocks import Blocks
from streamliner.runs.files import MARK, write_json

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


ROUNDING = {torch.float32: 1e-3}
"""Largest difference of logits, relative to the largest, that rounding what was trained may bring; else 0.1."""


def settle(graft: Graft, cut_folder: Path, sample: Tensor) -> tuple[dict[int, FeedForward], int]:
    """Put what was trained into the dense model, in the precision of the checkpoint that is to be written.

    Adapters are merged, and each network that a block of the architecture can be goes into the block whose place it
    takes. After it, `graft.in_place()` still runs the healed model, as it will be when reloaded.

    Args:
        graft: the trained networks.
        cut_folder: of the cut checkpoint.
        sample: token ids, (1, tokens), to compare networks and blocks on.

    Returns:
        The networks that no block can be, by place; and how many parameters of blocks are carried for nothing.

    Raises:
        VerificationError: the model is another afterwards than it was.
    """
    blocks = graft.blocks
    precision = usual_precision(cut_folder)
    before = healed_logits(graft, sample)
    trained = merge_adapters(blocks)
    places = {place: _block_for(network, blocks, place, sample) for place, network in graft.networks.items()}
    custom = {}
    if any(block is None for block in places.values()):  # one kind for all: the code is needed anyway
        custom = {place: network for place, network in graft.networks.items() if isinstance(network, FeedForward)}
    wasted = 0
    for place, block in places.items():
        if place not in custom and block is not None:
            blocks.modules[place].load_state_dict(block.state_dict())
            trained += list(blocks.modules[place].parameters())
            if isinstance(graft.networks[place], FeedForward):
                wasted += carried_for_nothing(block)
    trained += [parameter for network in custom.values() for parameter in network.parameters()]
    for parameter in trained:
        if parameter.is_floating_point():
            parameter.data.copy_(parameter.data.to(precision))
    for network in custom.values():
        network.to(blocks.dtype)
    graft.networks = custom  # the others are blocks of the model now
    difference = (healed_logits(graft, sample) - before).abs().max()
    tolerance = max(ROUNDING.get(dtype, 0.1) for dtype in (precision, blocks.dtype))
    if not difference <= tolerance * before.abs().max():
        raise VerificationError(
            f"Put into the model's blocks, what was trained gives other logits: they differ by {difference:.3g}.",
            "Please report it with the model's config.json.",
        )
    return custom, wasted


@torch.no_grad()
def healed_logits(graft: Graft, sample: Tensor) -> Tensor:
    """Of the healed model in memory on `sample`, (1, tokens): (1, tokens, words) in float32, on the processor."""
    dtype, device = graft.blocks.dtype, graft.blocks.device
    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    with graft.in_place(), mixed:
        return graft.blocks.forward(sample).logits.float().cpu()  # type: ignore[no-any-return]


def write_healed(graft: Graft, custom: dict[int, FeedForward], cut_folder: Path, partial: Path) -> None:
    """Write the checkpoint of a settled graft into the existing empty folder `partial`.

    Tensors that are as they were, and what is neither weights nor config, come from the cut checkpoint byte for byte.

    Raises:
        HealingError: the model's class cannot be extended by code.
    """
    blocks = graft.blocks
    healed = cut_model(blocks.model, graft.removed)
    if custom:
        numbers = Removal.of(graft.removed, len(blocks)).numbers
        config = json.loads((cut_folder / "config.json").read_text(encoding="utf-8"))
        code, config = custom_code.write_code(healed, config)
        config["streamliner"] = custom_code.describe(blocks, custom, numbers)
        stack = healed.get_submodule(blocks.path)
        for place, network in custom.items():
            holder = nn.Module()
            holder.add_module("network", network)
            stack[numbers[place]] = holder  # type: ignore[index, operator]
        # Names on disk that transformers converts belong to a model type, which custom code does not have.
        tensors = _in_precision(healed.state_dict(), cut_folder)
        healed.save_pretrained(partial, state_dict=tensors, save_original_format=False)  # type: ignore[operator]
        (partial / custom_code.FILE).write_text(code, encoding="utf-8")
        write_json(partial / "config.json", config)
    else:
        _rewrite(_names_on_disk(blocks.model, healed), cut_folder, partial)
    for other in sorted(cut_folder.iterdir()):
        is_weights = other.name.endswith((*WEIGHT_SUFFIXES, ".index.json")) and custom
        is_ours = other.name.startswith(".") or other.name == MARK or (partial / other.name).exists()
        if other.is_file() and not is_weights and not is_ours:
            shutil.copyfile(other, partial / other.name)


def _block_for(network: nn.Module, blocks: Blocks, place: int, sample: Tensor) -> nn.Module | None:
    if not isinstance(network, FeedForward):
        return network
    return as_stock_block(network, blocks, place, sample)


def _names_on_disk(dense: nn.Module, healed: nn.Module) -> dict[str, Tensor]:
    """The healed model's tensors by the names that a checkpoint of its type has them under."""
    from transformers.core_model_loading import revert_weight_conversion

    conversions: Any = getattr(dense, "_weight_conversions", None)  # how the dense one was read
    healed._weight_conversions = conversions
    return revert_weight_conversion(healed, healed.state_dict())  # type: ignore[no-any-return]


def _rewrite(tensors: dict[str, Tensor], cut_folder: Path, partial: Path) -> None:
    """The cut checkpoint's files with the tensors that changed, in the precision that they have there."""
    for path in sorted(cut_folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata, shard = file.metadata(), {}
            for name in file.keys():  # noqa: SIM118
                shard[name] = _newer(tensors.get(name), file.get_tensor(name))
        save_file(shard, partial / path.name, metadata=metadata)


def _newer(here: Tensor | None, there: Tensor) -> Tensor:
    """What is there, unless what is here is more than its rounding to the precision in memory."""
    if here is None or torch.equal(there.to(here.dtype), here.cpu()):
        return there
    return here.to(there.dtype).cpu().contiguous()


def _in_precision(tensors: dict[str, Tensor], cut_folder: Path) -> dict[str, Tensor]:
    """Tensors by the same names as in memory, those that are as they were from the cut checkpoint."""
    usual = usual_precision(cut_folder)
    found: dict[str, Tensor] = {}
    for path in sorted(cut_folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name in tensors and tensors[name].shape == torch.Size(file.get_slice(name).get_shape()):
                    found[name] = _newer(tensors[name], file.get_tensor(name))
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}  # tied tensors stay one
    for name, tensor in tensors.items():
        key = tensor.data_ptr(), tuple(tensor.shape)
        if key not in done:
            done[key] = found.get(name, tensor.to(usual) if tensor.is_floating_point() else tensor)
    return {name: done[tensor.data_ptr(), tuple(tensor.shape)] for name, tensor in tensors.items()}


def usual_precision(folder: Path) -> torch.dtype:
    """The precision of most tensors of a checkpoint."""
    found: list[torch.dtype] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            kinds = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
        found += [FLOATS[kind] for kind in kinds if kind in FLOATS]
    return max(set(found), key=found.count)
