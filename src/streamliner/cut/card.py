"""The model card of a cut or healed checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from streamliner.model.session import Session
from streamliner.search.plan import Plan


def extend_model_card(folder: Path, plan: Plan, result: dict[str, Any], code_file: str) -> None:
    """Add to README.md how the model was healed."""
    card = folder / "README.md"
    perplexity = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
    measured = ", ".join(f"{name} {value:.4g}" for name, value in perplexity.items() if math.isfinite(value))
    settings, training = result["settings"], result["training"]
    gaps = "; ".join(
        f"{gap['stop'] - gap['start']} blocks ({gap['start']} to {gap['stop'] - 1}) became {len(gap['places'])}"
        for gap in result["gaps"]
    )
    lines = [
        "\n## Healing\n",
        f"Network: {settings['network']}" + (f" ({gaps})." if gaps else "."),
        f"Adapters: LoRA of rank {settings['lora']}, merged." if settings["lora"] else "",
        f"Loss: {', '.join(settings['loss'])}. Trained on {training['tokens']:,} tokens of "
        f"{', '.join(name for name, _ in settings['data'])}; the state after step {training['best_step']} of "
        f"{training['steps']} was kept.",
        f"Perplexity on held-out windows: {measured}." if measured else "",
        f"The networks need the code in `{code_file}`: load with `trust_remote_code=True`."
        if result["custom_code"]
        else "",
    ]
    old = card.read_text(encoding="utf-8") if card.exists() else ""
    card.write_text(old + "\n".join(line for line in lines if line) + "\n", encoding="utf-8")


def write_model_card(folder: Path, session: Session, plan: Plan, result: dict[str, Any]) -> None:
    """Write README.md of a cut checkpoint; the dense model's stays as README.dense.md."""
    card = folder / "README.md"
    if card.exists():
        card.rename(folder / "README.dense.md")
    losses = ""
    if plan.loss is not None and plan.dense_loss is not None and plan.calibration:
        source = plan.calibration["source"]
        losses = f"\nCalibration loss ({source}): {plan.dense_loss:.4f} before, {plan.loss:.4f} after.\n"
    card.write_text(
        f"---\nlibrary_name: transformers\nbase_model: {session.source.name}\n---\n\n"
        f"# {Path(session.source.name).name} without {len(plan.removed)} of {plan.num_blocks} blocks\n\n"
        f"Removed blocks (0-based): {', '.join(map(str, plan.removed))}. Method: {plan.method}.\n{losses}\n"
        f"Parameters: {result['parameters_before']:,} before, {result['parameters_after']:,} after.\n"
        "Made with streamliner; `streamliner.json` holds the plan. The licence is that of the base model.\n",
        encoding="utf-8",
    )
