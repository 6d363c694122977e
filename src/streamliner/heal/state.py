"""The files of a training run, from which it continues after a kill."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamliner.errors import OutputError
from streamliner.runs.files import SCHEMA_VERSIONS, write_json, write_whole
from streamliner.runs.folder import check_same_run, environment, is_of_earlier_release

RUN, STATE, BEST = "healing.json", "state.safetensors", "best.safetensors"
"""Identity and settings of the run; all that it continues from; the best weights so far."""
HISTORY, RESULT = "history.jsonl", "result.json"
"""A row for each step; the result at the end."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter."""


@dataclass
class Progress:
    """How far a run is: steps done, the lowest validation loss so far and its step.

    `skipped` steps had a gradient that was not finite; `scale` is the state of half precision's gradient scaler;
    `learning_rate` is the peak that a range test found.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    skipped: int = 0
    scale: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None


def open_run(folder: Path, identity: dict[str, Any], settings: dict[str, Any], *, overwrite: bool) -> bool:
    """Create the run folder, or raise OutputError if it has another run; with `overwrite` that run is replaced.

    Returns whether the run is of an earlier release, which did not record on which config, device and releases it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorded: Any = {}
    if (folder / RUN).exists():
        with suppress(json.JSONDecodeError):  # whatever it is then, it is another run
            recorded = json.loads((folder / RUN).read_text(encoding="utf-8"))
        try:
            check_same_run(folder, recorded.get("identity", {}), identity)
        except OutputError:
            if not overwrite:
                raise
            for name in (RUN, STATE, BEST, HISTORY, RESULT):
                (folder / name).unlink(missing_ok=True)
    value = {"schema_version": SCHEMA_VERSIONS["healing"], "identity": identity, "settings": settings}
    write_json(folder / RUN, value | environment())
    return is_of_earlier_release(recorded)


def recorded_sizes(folder: Path) -> dict[str, Any] | None:
    """Of the run in a folder: the settings that have other defaults on other devices; None without a run."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))["settings"]
        sizes = {"sequence_length": found["sequence_length"], "global_batch_size": found["batch_size"]}
        return sizes | {name: found[name] for name in ("tokens", "steps", "epochs")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], value: Any) -> None:
    """Write tensors and a JSON value into one file."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_whole(path) as temporary:
        save_file(on_cpu, temporary, metadata={"value": json.dumps(value)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["value"])  # noqa: SIM118
