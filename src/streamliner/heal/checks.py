"""Check, before a healing starts, that folders and models are those it needs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamliner.cut.memory import cut_model, kept_names
from streamliner.cut.parent import plan_of
from streamliner.cut.safetensors_file import read_checkpoint
from streamliner.errors import HealingError, ModelError
from streamliner.heal.save_gguf import tensors_in_memory
from streamliner.heal_settings import HealSettings
from streamliner.model.devices import loaded_tensor
from streamliner.model.mark import is_gguf, read_mark
from streamliner.model.parts import shared_parameters
from streamliner.model.precision import quantised_by
from streamliner.model.session import Session
from streamliner.model.stack import find_stack, has_encoder
from streamliner.runs.outputs import is_gguf_name
from streamliner.search.plan import Plan
from streamliner.types import PreTrainedModel

ANOTHER_MODEL = "Give the model that it was cut from as the dense one."


def read_cut(cut: str | Path, out: str | Path) -> tuple[Path, Plan]:
    """The folder or GGUF file of a cut model that is not healed, and its plan; `out` must be of the same kind."""
    path, to_file = Path(cut).expanduser(), is_gguf_name(out)
    if is_gguf(path) and not to_file:
        found = f"{cut} is a GGUF file, so the healed model must be a GGUF file too."
        hint = f"Write -o NAME.gguf, or cut its dense model into a folder: streamliner cut MODEL --plan {cut} -o FOLDER"
        raise HealingError(found, hint)
    if not is_gguf(path) and not (path / "config.json").is_file():
        raise ModelError(f"There is no cut checkpoint {cut}.", "Make one with streamliner cut or prune.")
    if to_file and not is_gguf(path):
        found = f"{cut} is a folder, so it cannot become the GGUF file {out}: nothing is converted here."
        raise HealingError(found, "Write a folder (-o NAME), or heal a GGUF file that streamliner cut.")
    plan = plan_of(path)
    if not is_gguf(path) and quantised_by(json.loads((path / "config.json").read_bytes())):
        raise HealingError(
            f"The weights of {cut} are quantised, so they cannot be healed.",
            f"Cut the model that it was quantised from: streamliner cut MODEL --plan {cut} -o NEW, heal NEW, then "
            "quantise the result.",
        )
    if "healing" in (read_mark(path) or {}):
        raise HealingError(f"{cut} is healed already.", "Give the cut checkpoint that it was made from.")
    return path, plan


def check_healable(name: str, model: PreTrainedModel, config: Any, *, one_device: bool) -> None:
    """Raise HealingError if no settings can heal a dense model of this structure and config."""
    if not one_device:
        raise HealingError(
            "Healing needs one device that computes.",
            "Leave out --device auto; for a model that does not fit, --offload cpu or disk. In Python, load the model "
            "without device_map.",
        )
    if has_encoder(model):
        raise HealingError(f"{name} has an encoder, so text alone cannot train its blocks.")
    if quantised_by(config):
        raise HealingError(
            f"The weights of {name} are quantised, so they cannot be healed.",
            "Cut and heal the model that it was quantised from (a plan is for both), then quantise the result.",
        )


def check_offloaded(settings: HealSettings) -> None:
    """Raise HealingError if healing with these settings would change blocks whose weights are not in memory."""
    name = "--lora" if settings.lora else "--fold" if settings.fold else ""
    if name:
        raise HealingError(
            f"{name} changes blocks all over the model, and with --offload their weights are not in memory.",
            "Train --network block or --train-blocks N, or leave out --offload.",
        )


def check_sharded(dense: Session) -> None:
    """Raise HealingError if the blocks of the dense model cannot be divided among processes."""
    if dense.ranks.size == 1:
        raise HealingError(
            "--shard divides the frozen blocks among several processes, and there is one.",
            "Start it with torchrun --nproc-per-node 2 -m streamliner heal ..., or leave out --shard.",
        )
    if dense.settings.offload:
        raise HealingError("--shard and --offload exclude each other.", "Leave out one of them.")
    if any(len({index for index, _ in places}) > 1 for places in shared_parameters(dense.stack.modules)):
        found = f"Blocks of {dense.source.name} share weights, so they cannot be divided."
        raise HealingError(found, "Leave out --shard.")


def check_checkpoint(folder: Path, dense: PreTrainedModel, removed: tuple[int, ...]) -> None:
    """Raise ModelError unless the checkpoint or GGUF file in `folder` is `dense` without the blocks `removed`."""
    if is_gguf(folder):
        _check_same_weights(dense, removed, tensors_in_memory(folder, cut_model(dense, removed)), str(folder))
        return
    found, wanted = json.loads((folder / "config.json").read_bytes()).get("model_type"), dense.config.model_type
    if found != wanted:
        raise ModelError(f"{folder} is of type {found!r}, and the dense model of type {wanted!r}.", ANOTHER_MODEL)
    tensors = ((name, file.unchanged(name).load()) for file in read_checkpoint(folder) for name in file.tensors)
    _check_same_weights(dense, removed, tensors, str(folder))


def check_pair(cut: PreTrainedModel, dense: PreTrainedModel, removed: tuple[int, ...]) -> None:
    """Raise UserError unless `cut` is `dense` without the blocks `removed`, and in the same precision."""
    found, wanted = len(find_stack(cut)), len(find_stack(dense)) - len(removed)
    if type(cut) is not type(dense) or found != wanted:
        raise ModelError(
            f"The cut model is a {type(cut).__name__} of {found} blocks; the dense one is a {type(dense).__name__}, "
            f"which has {wanted} without the removed blocks.",
            ANOTHER_MODEL,
        )
    if cut.dtype != dense.dtype:
        raise HealingError(f"The cut model is in {cut.dtype} and the dense one in {dense.dtype}.", "Use one precision.")
    _check_same_weights(dense, removed, cut.state_dict().items(), "The cut model")


def _check_same_weights(
    dense: PreTrainedModel, removed: tuple[int, ...], tensors: Iterable[tuple[str, Tensor]], name: str
) -> None:
    """Compare some values of each tensor that the cut model has in memory too."""
    kept, names = cut_model(dense, removed, without_weights=True).state_dict(), kept_names(dense, removed)
    for tensor_name, tensor in tensors:
        if tensor_name not in kept:
            continue
        there, here = tensor.flatten(), loaded_tensor(dense, names.get(tensor_name, ""), kept[tensor_name]).flatten()
        step = max(1, len(there) // 256)
        if len(there) != len(here) or not torch.equal(here[::step].cpu(), there[::step].to(here.dtype).cpu()):
            raise ModelError(f"{name} was not cut from this dense model: {tensor_name} differs.", ANOTHER_MODEL)
