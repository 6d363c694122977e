"""The files of a training run, from which it continues after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streamliner.errors import OutputError
from streamliner.runs.files import SCHEMA_VERSIONS, read_json_lines, write_json, write_text, write_whole
from streamliner.runs.folder import check_same_run, environment

RUN, STATE, BEST = "healing.json", "state.safetensors", "best.safetensors"
"""Identity and settings of the run; all that it continues from; the best weights so far."""
HISTORY, RESULT = "history.jsonl", "result.json"
"""A row for each step; the result at the end."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter."""

Row = dict[str, Any]
"""What happened in a step: its losses, its learning rate, now and then the validation loss."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        best_step, best_loss: the step with the lowest validation loss so far, and that loss; None before the first one.
        skipped: steps whose gradient was not finite, so that the weights did not change.
        scale: the state of the gradient scaler in half precision.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    skipped: int = 0
    scale: dict[str, Any] = field(default_factory=dict)


def open_run(folder: Path, identity: dict[str, Any], settings: dict[str, Any], *, overwrite: bool) -> None:
    """Create the run folder, or check that the run in it is this one; with `overwrite` another run is replaced.

    Raises:
        OutputError: the folder has another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RUN).exists():
        try:
            check_same_run(folder, _recorded_identity(folder), identity)
        except OutputError:
            if not overwrite:
                raise
            for name in (RUN, STATE, BEST, HISTORY):
                (folder / name).unlink(missing_ok=True)
    value = {"schema_version": SCHEMA_VERSIONS["healing"], "identity": identity, "settings": settings}
    write_json(folder / RUN, value | environment())


def _recorded_identity(folder: Path) -> Any:
    try:
        return json.loads((folder / RUN).read_text(encoding="utf-8")).get("identity", {})
    except json.JSONDecodeError:
        return {}  # whatever it is, it is another run


def steps_done(folder: Path) -> int | None:
    """After how many steps the saved state was taken; None if there is none."""
    return load_tensors(folder / STATE)[1]["progress"]["step"] if (folder / STATE).exists() else None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], value: Any) -> None:
    """Write tensors and a JSON value into one file."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_whole(path) as temporary:
        save_file(on_cpu, temporary, metadata={"value": json.dumps(value)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["value"])  # noqa: SIM118


def optimiser_tensors(optimiser: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The parameters and AdamW's moments by name."""
    tensors = {f"parameter/{name}": parameter.data for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        tensors |= {f"{key}/{name}": optimiser.state[parameter][key] for key in MOMENTS if optimiser.state[parameter]}
    return tensors


def load_optimiser(
    optimiser: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimiser_tensors` returned."""
    for name, parameter in trainable.items():
        parameter.data.copy_(tensors[f"parameter/{name}"])
        if f"exp_avg/{name}" in tensors:
            moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS}
            optimiser.state[parameter] = {
                key: moment if key == "step" else moment.to(parameter.device) for key, moment in moments.items()
            }


def cut_history(folder: Path, step: int) -> None:
    """Remove the rows after the saved state; all of them if there is none (step 0)."""
    rows = [row for row in read_json_lines(folder / HISTORY) if row["step"] <= step and step > 0]
    write_text(folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))
