"""Write the healed checkpoint: a stock one where the architecture can express the networks, else one with own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from streamliner.blocks import Blocks
from streamliner.cut.checkpoint import WEIGHT_SUFFIXES
from streamliner.cut.fields import Removal
from streamliner.cut.model import cut_model
from streamliner.cut.output import MARK
from streamliner.heal import custom_code
from streamliner.heal.adapters import merge_adapters
from streamliner.heal.feed_forward import FeedForward
from streamliner.heal.graft import Graft
from streamliner.heal.stock import as_stock_block, carried_for_nothing
from streamliner.run import write_json

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    """
    blocks = graft.blocks
    merge_adapters(blocks)
    places = {place: _block_for(network, blocks, place, sample) for place, network in graft.networks.items()}
    custom = {}
    if any(block is None for block in places.values()):  # one kind for all: the code is needed anyway
        custom = {place: network for place, network in graft.networks.items() if isinstance(network, FeedForward)}
    wasted = 0
    for place, block in places.items():
        if place not in custom and block is not None:
            blocks.modules[place].load_state_dict(block.state_dict())
            if isinstance(graft.networks[place], FeedForward):
                wasted += carried_for_nothing(block)
    precision = _precision(cut_folder)
    for module in (blocks.modules, *custom.values()):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data.copy_(parameter.data.to(precision))
    for network in custom.values():
        network.to(blocks.dtype)
    graft.networks = custom  # the others are blocks of the model now
    return custom, wasted


def write_healed(
    graft: Graft,
    custom: dict[int, FeedForward],
    cut_folder: Path,
    partial: Path,
) -> None:
    """Write the checkpoint of a settled graft into the existing empty folder `partial`.

    What is neither weights nor config comes from the cut checkpoint as it is.

    Raises:
        HealingError: the model's class cannot be extended by code.
    """
    blocks = graft.blocks
    healed = cut_model(blocks.model, graft.removed)
    config = json.loads((cut_folder / "config.json").read_text(encoding="utf-8"))
    numbers = Removal.of(graft.removed, len(blocks)).numbers
    if custom:
        code, config = custom_code.write_code(healed, config)
        config["streamliner"] = custom_code.describe(blocks, custom, numbers)
        stack = healed.get_submodule(blocks.path)
        for place, network in custom.items():
            holder = nn.Module()
            holder.network = network
            stack[numbers[place]] = holder  # type: ignore[index, operator]
    tensors = _in_precision(healed, cut_folder)
    # Names on disk that transformers converts belong to a model type, which custom code does not have.
    healed.save_pretrained(partial, state_dict=tensors, save_original_format=not custom)  # type: ignore[operator]
    for other in sorted(cut_folder.iterdir()):
        is_weights = other.name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
        if other.is_file() and not is_weights and not other.name.startswith(".") and other.name != MARK:
            shutil.copyfile(other, partial / other.name)
    if custom:
        (partial / custom_code.FILE).write_text(code, encoding="utf-8")
        write_json(partial / "config.json", config)


def _block_for(network: nn.Module, blocks: Blocks, place: int, sample: Tensor) -> nn.Module | None:
    if not isinstance(network, FeedForward):
        return network
    return as_stock_block(network, blocks, place, sample)


def _in_precision(model: nn.Module, cut_folder: Path) -> dict[str, Tensor]:
    """The model's tensors, each in the precision that the cut checkpoint has it in, or most of its tensors have."""
    known, usual = _precisions(cut_folder), _precision(cut_folder)
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}  # tied tensors stay one
    result = {}
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr(), tuple(tensor.shape)
        if key not in done:
            done[key] = tensor.to(known.get(name, usual)) if tensor.is_floating_point() else tensor
        result[name] = done[key]
    return result


def _precision(cut_folder: Path) -> torch.dtype:
    precisions = list(_precisions(cut_folder).values())
    return max(set(precisions), key=precisions.count)


def _precisions(folder: Path) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        found |= {name: FLOATS[kind] for name, kind in kinds.items() if kind in FLOATS}
    return found
