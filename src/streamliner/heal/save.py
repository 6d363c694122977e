"""Write the healed checkpoint: a stock one if the architecture can express the networks, otherwise with custom code.

Which precision wins: training is in float32. `merge` rounds what was trained to the precision of most tensors of the
cut checkpoint, and keeps it in memory in the precision in which the model was loaded. In the healed checkpoint every
tensor has the precision that it has in the cut one, and if it did not change it has the same bytes, even where the
model was loaded in a lower precision. Tensors that the cut checkpoint does not have, which are those of custom
networks, get the precision of most tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from streamliner.cut.checkpoint import copy_other_files
from streamliner.cut.config_file import write_config
from streamliner.cut.memory import cut_model
from streamliner.cut.removal import Removal
from streamliner.cut.safetensors_file import FLOATS, NewTensor, TensorFile, read_checkpoint, write_file
from streamliner.cut.verification import Reference, reference_outputs
from streamliner.heal.custom_code import FILE, write_code
from streamliner.heal.graft import Graft
from streamliner.model.compat import tensors_as_on_disk
from streamliner.model.parts import find_part


def write_healed(graft: Graft, cut_folder: Path, out: Path) -> None:
    """Write the checkpoint of a merged graft into the existing empty folder `out`.

    Tensors that did not change, and what is neither weights nor config, come from the cut checkpoint byte for byte.

    Raises:
        HealingError: it needs custom code, and the model's class cannot be extended by code.
    """
    healed = cut_model(graft.blocks.model, graft.removed)
    if graft.networks:
        numbers = Removal.of(graft.removed, len(graft.blocks)).numbers
        config = json.loads((cut_folder / "config.json").read_text(encoding="utf-8"))
        code, config = write_code(healed, config, graft, numbers)
        for place, network in graft.networks.items():
            holder = nn.Module()
            holder.add_module("network", network)
            find_part(healed, graft.blocks.path)[numbers[place]] = holder  # type: ignore[index, operator]
        # Names on disk that transformers converts belong to a model type, which custom code does not have.
        tensors = _in_precision(healed.state_dict(), cut_folder)
        healed.save_pretrained(out, state_dict=tensors, save_original_format=False)
        (out / FILE).write_text(code, encoding="utf-8")
        write_config(out / "config.json", config)
    else:
        tensors = tensors_as_on_disk(graft.blocks.model, healed)
        for file in read_checkpoint(cut_folder):
            write_file(out / file.path.name, file, _newer_tensors(file, tensors))
    copy_other_files(cut_folder, out, weights=not graft.networks)


def usual_precision(folder: Path) -> torch.dtype:
    """The precision of most tensors of a checkpoint."""
    types = [tensor["dtype"] for file in read_checkpoint(folder) for tensor in file.tensors.values()]
    found = [FLOATS[name] for name in types if name in FLOATS]
    return max(set(found), key=found.count)


def healed_reference(graft: Graft, sample: Tensor) -> Reference:
    """The logits of the healed model in memory, to compare the written one with; generation is the dense model's."""
    dense = reference_outputs(graft.blocks, (), sample)
    with torch.no_grad(), graft.in_place():
        logits = graft.blocks.forward(sample).logits.cpu()
    return replace(dense, logits=logits, source="the healed model in memory")


def _newer_tensors(file: TensorFile, tensors: Mapping[str, Tensor]) -> dict[str, NewTensor]:
    """The tensors of a file of the cut checkpoint; those that changed come from memory, in the file's precision."""
    result = {}
    for name, header in file.tensors.items():
        old, here = NewTensor(file, name, header["dtype"], tuple(header["shape"])), tensors.get(name)
        result[name] = old if here is None or _unchanged(here, old.load()) else replace(old, make=here.cpu)
    return result


def _unchanged(here: Tensor, there: Tensor) -> bool:
    """Whether loading the tensor `there` gives the tensor `here`."""
    return torch.equal(there.to(here.dtype), here.cpu())


def _in_precision(tensors: Mapping[str, Tensor], cut_folder: Path) -> dict[str, Tensor]:
    """Tensors under their names in memory; those that did not change come from the cut checkpoint."""
    usual = usual_precision(cut_folder)
    on_disk = {name: file for file in read_checkpoint(cut_folder) for name in file.tensors}
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}  # tied tensors stay one
    for name, here in tensors.items():
        key = here.data_ptr(), tuple(here.shape)
        header = on_disk[name].tensors[name] if name in on_disk else {}
        if tuple(header.get("shape", ())) == key[1] and header:
            there = NewTensor(on_disk[name], name, header["dtype"], key[1]).load()
            done[key] = there if _unchanged(here, there) else here.to(there.dtype).cpu().contiguous()
        elif key not in done:
            done[key] = here.to(usual) if here.is_floating_point() else here
    return {name: done[here.data_ptr(), tuple(here.shape)] for name, here in tensors.items()}
