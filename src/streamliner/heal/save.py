"""Write the healed checkpoint: a stock one if the architecture can express the networks, otherwise with custom code.

Which precision wins: training is in float32. `merge` rounds what was trained to the precision of most tensors of the
cut checkpoint, and keeps it in memory in the precision in which the model was loaded. In the healed checkpoint every
tensor has the precision that it has in the cut one, and if it did not change it has the same bytes, even where the
model was loaded in a lower precision. Tensors of custom networks get the precision of most tensors.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from streamliner.cut.checkpoint import copy_other_files
from streamliner.cut.config_file import write_config
from streamliner.cut.memory import cut_model
from streamliner.cut.safetensors_file import FLOATS, NewTensor, TensorFile, read_checkpoint, write_file
from streamliner.cut.verification import Reference, reference_outputs, verify_checkpoint
from streamliner.errors import HealingError, first_line, is_out_of_memory
from streamliner.heal.custom_code import FILE, write_code
from streamliner.heal.graft import Graft
from streamliner.heal.merge import stock_blocks
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.model.compat import tensors_as_on_disk
from streamliner.model.parts import find_part
from streamliner.runs.reporter import Reporter


def write_healed(graft: Graft, cut_folder: Path, out: Path) -> None:
    """Write the checkpoint of a merged graft into the existing empty folder `out`.

    Tensors that did not change, and what is neither weights nor config, come from the cut checkpoint byte for byte.
    Raises HealingError if it needs custom code, and the model's class cannot be extended by code.
    """
    healed = cut_model(graft.blocks.model, graft.removed, without_weights=True)
    if graft.networks:
        kept = [block for block in range(len(graft.blocks)) if block not in graft.removed]
        numbers = {old: new for new, old in enumerate(kept)}
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
            write_file(out / file.path.name, _newer_tensors(file, tensors), file.metadata)
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


def try_out(graft: Graft, cut_folder: Path, folder: Path, sample: Tensor, reporter: Reporter) -> None:
    """Before training: if it needs custom code, write a checkpoint with random networks; reload and compare it.

    The graft does not change; the trial is written into `folder` and removed. Raises HealingError if it fails.
    """
    if not any(isinstance(network, FeedForward) for network in graft.networks.values()):
        return
    trial = replace(graft, networks=copy.deepcopy(graft.networks), head=None)
    generator, precision = torch.Generator().manual_seed(0), usual_precision(cut_folder)
    for network in trial.networks.values():
        for parameter in network.parameters():  # as they start, networks may compute nothing
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data = (parameter.data + noise.to(parameter)).to(precision).float()
    if stock_blocks(trial, sample) is not None:
        return
    if graft.blocks.offloaded:
        raise HealingError(
            "No stock class has such a network, and writing the code for it needs all weights in memory.",
            "Choose --network block, or leave out --offload.",
        )
    for stale in folder.glob(".trial-*"):  # of a process that was killed here
        shutil.rmtree(stale, ignore_errors=True)
    reporter.say("Testing whether such a network can be saved, loaded and generate ...")
    for network in trial.networks.values():
        network.to(graft.blocks.dtype).requires_grad_(False)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".trial-") as name:
            reference = healed_reference(trial, sample)
            write_healed(trial, cut_folder, Path(name))
            verify_checkpoint(Path(name), reference, trust_remote_code=True)
    except (HealingError, OSError):
        raise  # these do not depend on the architecture
    except Exception as error:  # an architecture may fail with such a network in ways of its own
        if is_out_of_memory(error):
            raise
        raise HealingError(
            f"{type(graft.blocks.model).__name__} does not work with such a network: "
            f"{type(error).__name__}: {first_line(error)}",
            "Choose --network block.",
        ) from error


def _newer_tensors(file: TensorFile, tensors: Mapping[str, Tensor]) -> dict[str, NewTensor]:
    """The tensors of a file of the cut checkpoint; those that changed come from memory, in the file's precision."""
    result = {}
    for name in file.tensors:
        old, here = file.unchanged(name), tensors.get(name)
        same = here is None or here.is_meta or _unchanged(here, old.load())  # on the meta device: offloaded
        result[name] = old if here is None or same else replace(old, make=here.cpu)
    return result


def _unchanged(here: Tensor, there: Tensor) -> bool:
    """Whether loading the tensor `there` gives the tensor `here`."""
    return torch.equal(there.to(here.dtype), here.cpu())


def _in_precision(tensors: Mapping[str, Tensor], cut_folder: Path) -> dict[str, Tensor]:
    """Tensors under their names in memory; those that did not change come from the cut checkpoint."""
    usual = usual_precision(cut_folder)
    on_disk = {name: file.unchanged(name) for file in read_checkpoint(cut_folder) for name in file.tensors}
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}  # tied tensors stay one
    for name, here in tensors.items():
        key = here.data_ptr(), tuple(here.shape)
        if name in on_disk and on_disk[name].shape == key[1]:
            there = on_disk[name].load()
            done[key] = there if _unchanged(here, there) else here.to(there.dtype).cpu().contiguous()
        elif key not in done:
            done[key] = here.to(usual) if here.is_floating_point() else here
    return {name: done[here.data_ptr(), tuple(here.shape)] for name, here in tensors.items()}
