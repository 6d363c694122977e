"""The model card of a cut or healed checkpoint."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from streamliner.model.source import HUB_ID
from streamliner.search.frontier import note_of
from streamliner.search.plan import Plan

KEPT = (
    *("license", "license_name", "license_link", "language", "tags", "datasets", "pipeline_tag", "base_model"),
    *("extra_gated_prompt", "extra_gated_heading", "extra_gated_button_content"),
)
"""Fields of the dense model's card that hold for the cut model too."""


def write_model_card(folder: Path, base: str, plan: Plan, result: dict[str, Any]) -> None:
    """Write README.md of a model cut from `base`; that of the dense model becomes README.dense.md."""
    card, meta = folder / "README.md", _metadata(folder / "README.md", base)
    if card.exists():
        names = ("README.dense.md", *(f"README.dense-{number}.md" for number in range(2, 100)))
        card.rename(next(folder / name for name in names if not (folder / name).exists()))
    losses = ""
    if plan.loss is not None and plan.dense_loss is not None and plan.calibration:
        source = plan.calibration["source"]
        losses = f"\nCalibration loss ({source}): {plan.dense_loss:.4f} before, {plan.loss:.4f} after.\n"
        losses += f"{note}\n" if (note := note_of(plan.settings)) else ""
    card.write_text(
        f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {Path(base).name} without {len(plan.removed)} of {plan.num_blocks} blocks\n\n"
        f"Removed blocks (0-based): {', '.join(map(str, plan.removed))}. Method: {plan.method}.\n{losses}\n"
        f"Parameters: {result['parameters_before']:,} before, {result['parameters_after']:,} after.\n"
        "Made with streamliner; `streamliner.json` has the plan. The licence is that of the base model.\n",
        encoding="utf-8",
    )


def _metadata(card: Path, base: str) -> dict[str, Any]:
    """What the hub reads at the top of a card: the licence and languages of the dense model's, and which that is.

    A path on this machine is no name on the hub, which would refuse the card: then the dense card's own base stays.
    """
    meta: dict[str, Any] = {}
    if card.is_file():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        with suppress(yaml.YAMLError, IndexError):
            found = yaml.safe_load(parts[1]) if not parts[0].strip() else None
            meta = {key: value for key, value in found.items() if key in KEPT} if isinstance(found, dict) else {}
    if HUB_ID.fullmatch(base) and "/" in base and not Path(base).exists():
        meta |= {"base_model": base, "base_model_relation": "finetune"}
    return {"library_name": "transformers"} | meta


def extend_model_card(folder: Path, result: dict[str, Any], code_file: str) -> None:
    """Add to README.md the `result` of a healing; `code_file` is the Python file that custom networks need."""
    settings = result["settings"]
    ranges = ((", ".join(map(str, range(gap["start"], gap["stop"]))), len(gap["places"])) for gap in result["gaps"])
    gaps = "; ".join(f"blocks {blocks} became {count}" for blocks, count in ranges)
    sources = ", ".join(name for name, _ in settings["data"])
    lines = ["\n## Healing\n"]
    kept = [each for each in result["folds"] if each["kept"]]
    if result["folds"]:
        fitted = ", ".join(str(each["block"]) for each in kept) or "none, as no repair lowered the loss"
        lines.append(
            f"Fold: {settings['fold']}, a repair in closed form on text of {sources}. Blocks fitted: {fitted}."
        )
    if settings["network"] != "none":
        lines.append(f"Network: {settings['network']}" + (f" ({gaps})." if gaps else "."))
    if settings["lora"]:
        lines.append(f"Adapters: LoRA of rank {settings['lora']}, merged.")
    if training := result["training"]:
        lines.append(
            f"Loss: {', '.join(settings['loss'])}. Trained on {training['tokens']:,} tokens of {sources}; "
            f"the state after step {training['best_step']} of {training['steps']} was kept."
        )
    perplexities = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
    measured = [f"{name} {value:.4g}" for name, value in perplexities.items() if math.isfinite(value)]
    if measured:
        lines.append(f"Perplexity on held-out windows: {', '.join(measured)}.")
    if result["custom_code"]:
        lines.append(f"The networks need the code in `{code_file}`: load with `trust_remote_code=True`.")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("\n".join(lines) + "\n")
