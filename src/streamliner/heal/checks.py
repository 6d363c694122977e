"""What a healing needs to be told before it begins: that the folders and the models are those they must be."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from streamliner.cut.memory import cut_model
from streamliner.errors import HealingError, ModelError, OutputError, PlanError
from streamliner.model.blocks import Blocks
from streamliner.model.session import Session
from streamliner.runs.files import MARK
from streamliner.search.plan import Plan, read_plan


def read_cut(folder: str | Path) -> tuple[Path, Plan]:
    """The cut checkpoint's folder and its plan."""
    path = Path(folder).expanduser()
    if not path.is_dir() or not (path / "config.json").is_file():
        raise ModelError(f"There is no cut checkpoint {folder}.", "Make one with streamliner cut or prune.")
    if not (path / MARK).is_file():
        raise PlanError(
            f"{folder} holds no {MARK}, so what was removed from it is not known.",
            "Give a folder that streamliner cut or prune wrote.",
        )
    if "healing" in json.loads((path / MARK).read_text(encoding="utf-8")):
        raise HealingError(f"{folder} is healed already.", "Give the cut checkpoint that it was made from.")
    return path, read_plan(path)


def check_apart(out: Path, folder: Path, cut_path: Path) -> None:
    """Raise OutputError if one of the folders would lie in another."""
    places = [("output", out.expanduser().absolute()), ("run folder", folder), ("cut checkpoint", cut_path.absolute())]
    for name, path in places[:2]:
        for other, holder in places:
            if name != other and (path == holder or holder in path.parents):
                raise OutputError(f"The {name} {path} lies in the {other}.", "Choose another folder.")


def check_same_type(dense: Session, cut_path: Path) -> None:
    """Raise ModelError if the cut checkpoint says that it is of another type than the dense model."""
    config = json.loads((cut_path / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != dense.config.model_type:
        raise ModelError(
            f"{cut_path} is of type {config.get('model_type')!r}, and the dense model of type "
            f"{dense.config.model_type!r}.",
            "Give the model it was cut from with --dense.",
        )


def check_same_weights(blocks: Blocks, removed: tuple[int, ...], cut_path: Path) -> None:
    """Raise ModelError unless the cut checkpoint's tensors are the dense model's: some values of each are compared."""
    tensors = cut_model(blocks.model, removed).state_dict()
    for path in sorted(cut_path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name not in tensors:  # named otherwise in memory
                    continue
                there, here = file.get_tensor(name).flatten(), tensors[name].flatten()
                step = max(1, len(there) // 256)
                if len(there) != len(here) or not torch.equal(here[::step].cpu(), there[::step].to(here.dtype)):
                    raise ModelError(
                        f"{cut_path} was not cut from this dense model: {name} differs.",
                        "Give the model it was cut from with --dense.",
                    )
