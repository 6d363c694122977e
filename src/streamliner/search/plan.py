"""The plan: which blocks go, and where that came from. A JSON file; the only thing that cutting needs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamliner.errors import PlanError
from streamliner.model.stack import check_indices
from streamliner.runs.files import SCHEMA_VERSIONS

PLAN_FILES = ("plan.json", "streamliner.json")
"""Its name in a run folder and in a cut checkpoint."""


@dataclass(frozen=True)
class Plan:
    """Blocks to remove from one kind of model.

    Attributes:
        removed: ascending block indices of the dense model.
        num_blocks: blocks of the dense model.
        model: its name and shape: name, model_type, hidden_size, vocab_size.
        method: the method's name, or "manual".
        settings: its hyper-parameters.
        order: the order of removal, where there was one.
        score: the method's estimate of the damage.
        dense_loss, loss: calibration loss before and after, nats per token, where measured.
        calibration: provenance of the calibration set.
    """

    removed: tuple[int, ...]
    num_blocks: int
    model: dict[str, Any]
    method: str = "manual"
    settings: dict[str, Any] = field(default_factory=dict)
    order: tuple[int, ...] | None = None
    score: float | None = None
    dense_loss: float | None = None
    loss: float | None = None
    calibration: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSIONS["plan"]

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)


def read_plan(path: str | Path) -> Plan:
    """Read a plan file, or the plan in a run folder or a cut checkpoint.

    Raises:
        PlanError: it is not there or not a plan.
    """
    file = Path(path)
    if file.is_dir():
        file = next((file / name for name in PLAN_FILES if (file / name).is_file()), file / PLAN_FILES[0])
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (file.parent / "journal.jsonl").is_file():
            raise PlanError(
                f"The search in {path} is not finished.", "The command that began it goes on from there."
            ) from error
        raise PlanError(f"There is no plan {path}.", "streamliner search writes one into its run folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise PlanError(f"The plan {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise PlanError(f"The plan {path} is not a JSON object.")
    if value.get("schema_version") != SCHEMA_VERSIONS["plan"]:
        raise PlanError(
            f"The plan {path} has schema_version {value.get('schema_version')!r}; "
            f"this release reads {SCHEMA_VERSIONS['plan']}."
        )
    for result in ("cut", "healing"):  # streamliner.json in a checkpoint is its plan and what came of it
        value.pop(result, None)
    known = set(Plan.__dataclass_fields__)
    missing, unknown = {"removed", "num_blocks", "model"} - set(value), set(value) - known
    if missing or unknown:
        raise PlanError(f"The plan {path} is not a plan: lacks {sorted(missing)}, has unknown {sorted(unknown)}.")
    if not (
        _is_indices(value["removed"]) and isinstance(value["num_blocks"], int) and isinstance(value["model"], dict)
    ):
        raise PlanError(f"The plan {path} is not a plan: removed must be a list of block numbers.")
    order = value.get("order")
    if order is not None and (not _is_indices(order) or sorted(order) != sorted(value["removed"])):
        raise PlanError(f"The plan {path} contradicts itself: order and removed name different blocks.")
    return Plan(
        **(
            value
            | {
                "removed": check_indices(value["removed"], value["num_blocks"]),
                "order": None if order is None else tuple(order),
            }
        )
    )


def check_plan(plan: Plan, model: dict[str, Any], num_blocks: int, hint: str = "") -> None:
    """Raise PlanError unless `plan` is for a model of this kind and shape (`model_identity`)."""
    wanted, found = {**plan.model, "num_blocks": plan.num_blocks}, {**model, "num_blocks": num_blocks}
    for key in ("num_blocks", "model_type", "hidden_size"):
        if wanted.get(key) != found[key]:
            raise PlanError(
                f"The plan is for another model: it was made for {key} {wanted.get(key)}, "
                f"but {model['name']} has {key} {found[key]}.",
                hint or "Search this model, or name its blocks with --blocks.",
            )


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(index, int) and not isinstance(index, bool) for index in value)
