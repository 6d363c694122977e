"""The plan: which blocks to remove, and how they were chosen. A JSON file, and all that cutting needs."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamliner.errors import PlanError
from streamliner.format import perplexity_of
from streamliner.model.mark import is_gguf, read_mark
from streamliner.model.stack import check_indices
from streamliner.runs.files import SCHEMA_VERSIONS
from streamliner.runs.outputs import MARK

NUMBER = (int, float, type(None))
KINDS: dict[str, Any] = {
    **dict.fromkeys(("score", "dense_loss", "loss"), NUMBER),
    **{"model": dict, "settings": dict, "method": str, "objective": str, "calibration": (dict, type(None))},
}
"""Types of a plan's values."""
ONE_IN_GGUF = {"llama", "mistral", "mixtral"}
"""Model types that GGUF files all call llama. A plan for one in a GGUF file is one for the safetensors of the other."""
PLAN_FILES = ("plan.json", MARK)
"""The name of the plan in a run folder and in a cut checkpoint."""


@dataclass(frozen=True)
class Plan:
    """Blocks to remove from one kind of model.

    Attributes:
        removed: ascending block indices of the dense model.
        num_blocks: number of blocks of the dense model.
        model: its name and shape: name, model_type, hidden_size, vocab_size; and the precision of its stored
            weights, in words.
        method: name of the method, or "manual".
        settings: its hyper-parameters.
        objective: what it minimised: "loss", or "kl", the divergence from the dense model.
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
    objective: str = "loss"
    schema_version: int = SCHEMA_VERSIONS["plan"]

    def to_json(self) -> dict[str, object]:
        """The content of a plan file."""
        return asdict(self)

    def __repr__(self) -> str:
        blocks = ", ".join(map(str, self.removed))
        measured = self.loss is not None and self.dense_loss is not None
        change = f": perplexity {perplexity_of(self.dense_loss)} -> {perplexity_of(self.loss)}" if measured else ""
        return (
            f"Plan for {self.model.get('name', 'a model')} ({self.method}): "
            f"remove {len(self.removed)} of {self.num_blocks} blocks [{blocks}]{change}"
        )


def read_plan(path: str | Path) -> Plan:
    """Read a plan file, or the plan in a run folder, a cut checkpoint or a cut GGUF file.

    Raises:
        PlanError: there is none, or it is not a plan.
    """
    file = Path(path)
    if file.is_dir():
        file = next((file / name for name in PLAN_FILES if (file / name).is_file()), file / PLAN_FILES[0])
    value = _read_mark(file) if is_gguf(file) else _read_object(file, path)
    version = value.get("schema_version")
    if version != SCHEMA_VERSIONS["plan"]:
        raise PlanError(
            f"The plan {path} has schema_version {version!r}; this release reads {SCHEMA_VERSIONS['plan']}.",
            "Search again with this release.",
        )
    for result in ("cut", "healing"):  # in a checkpoint, the results of the plan are in the same file
        value.pop(result, None)
    missing = {"removed", "num_blocks", "model"} - set(value)
    unknown = set(value) - set(Plan.__dataclass_fields__)
    if missing or unknown:
        raise PlanError(f"{path} is not a plan: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}.")
    removed, order = value["removed"], value.get("order")
    if not (_are_indices(removed) and type(value["num_blocks"]) is int):
        raise PlanError(f"{path} is not a plan: removed must be a list of block indices.")
    for key in sorted(value.keys() & KINDS.keys()):
        if not isinstance(value[key], KINDS[key]) or isinstance(value[key], bool):
            raise PlanError(f"{path} is not a plan: {key} cannot be {value[key]!r:.60}.")
    if order is not None and (not _are_indices(order) or sorted(order) != sorted(removed)):
        raise PlanError(f"The plan {path} contradicts itself: order and removed name different blocks.")
    if not isinstance((value.get("calibration") or {"source": ""}).get("source"), str):
        raise PlanError(f"{path} is not a plan: its calibration has no source.")
    value["removed"] = check_indices(removed, value["num_blocks"])
    value["order"] = None if order is None else tuple(order)
    return Plan(**value)


def check_plan(plan: Plan, model: dict[str, Any], num_blocks: int, hint: str = "") -> None:
    """Check that `plan` is for a model of this kind and shape (`Session.identity`); a PlanError if not."""
    wanted, found = {**plan.model, "num_blocks": plan.num_blocks}, {**model, "num_blocks": num_blocks}
    for key in ("num_blocks", "model_type", "hidden_size"):
        if key == "model_type" and {wanted.get(key), found[key]} <= ONE_IN_GGUF:
            continue
        if wanted.get(key) != found[key]:
            raise PlanError(
                f"The plan is for another model: it was made for {key} {wanted.get(key)}, "
                f"but {model['name']} has {key} {found[key]}.",
                hint or "Search this model, or name its blocks with --blocks.",
            )


def _read_mark(file: Path) -> dict[str, Any]:
    value = read_mark(file)
    if value is None:
        raise PlanError(
            f"The GGUF file {file} has no plan in it.", "streamliner cut writes one into a file that it cuts."
        )
    return value


def _read_object(file: Path, path: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (file.parent / "journal.jsonl").is_file():
            raise PlanError(
                f"The search in {path} is not finished.", "Run the command that started it again: it continues."
            ) from error
        raise PlanError(f"There is no plan {path}.", "streamliner search writes one into its run folder.") from error
    except (ValueError, RecursionError, OSError) as error:
        raise PlanError(f"The plan {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise PlanError(f"{path} is not a plan: it does not hold a JSON object.")
    return value


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(type(index) is int for index in value)
