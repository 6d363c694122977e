"""What a training run needs to go on after a kill: one safetensors file, replaced whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

STATE, BEST, HISTORY = "state.safetensors", "best.safetensors", "history.jsonl"


MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter."""


Row = dict[str, Any]
"""What happened in a step."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        best_step, best_loss: where the validation loss was least so far, and that loss; None if there was none yet.
        skipped: steps whose gradient was not finite, so that nothing was learnt from them.
        scale: of the gradients in half precision.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    skipped: int = 0
    scale: dict[str, Any] = field(default_factory=dict)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], value: Any) -> None:
    """Tensors and a JSON value in one file, which is always whole: the old one or the new."""
    for stale in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        stale.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, temporary, metadata={"value": json.dumps(value)})
    temporary.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What `save_tensors` wrote."""
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
    """Put back what `optimiser_tensors` took."""
    for name, parameter in trainable.items():
        parameter.data.copy_(tensors[f"parameter/{name}"])
        if f"exp_avg/{name}" in tensors:
            moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS}
            optimiser.state[parameter] = {
                key: moment if key == "step" else moment.to(parameter.device) for key, moment in moments.items()
            }


class History:
    """A line for each step: its loss, learning rate, and now and then the validation loss."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path, self._writes = path, writes

    def rows(self) -> list[Row]:
        """All steps so far."""
        if not self._path.exists():
            return []
        content = self._path.read_bytes()
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def go_back_to(self, step: int) -> None:
        """Forget steps that a kill undid."""
        rows = [row for row in self.rows() if row["step"] <= step and step > 0]
        if self._writes:
            temporary = self._path.with_name(f".{self._path.name}")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            temporary.replace(self._path)

    def add(self, row: Row) -> None:
        """Append a step."""
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
