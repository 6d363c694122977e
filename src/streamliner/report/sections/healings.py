"""A training: its losses by step, and what came of it."""

from __future__ import annotations

from pathlib import Path

from streamliner.format import number
from streamliner.report.figures import Series, plot
from streamliner.report.read import Run
from streamliner.report.section import Section, Table


def healing_section(run: Run) -> Section:
    """The curve, the perplexities on held-out windows, and which state was kept."""
    settings = run.files.get("healing", {}).get("settings", {})
    kind = " and ".join(
        [settings["network"]] * (settings.get("network", "none") != "none")
        + [f"LoRA of rank {settings.get('lora')}"] * bool(settings.get("lora"))
    )
    folder = Path(run.name)
    owner = folder.parent.name if folder.name == "healing" else folder.name
    section = Section(f"Healing: {kind}, {' and '.join(settings.get('loss', {}))} ({owner})")
    if settings:
        texts = ", ".join(name for name, _ in settings["data"])
        section.text.append(
            f"Trained on {texts}; batches of {settings['batch_size']} windows, learning rate "
            f"{settings['learning_rate']:g}, seed {settings['seed']}."
        )
    trained = [row for row in run.history if row.get("loss") is not None]
    validated = [row for row in run.history if row.get("validation") is not None]
    series = [
        Series("training", [(row["step"], row["loss"]) for row in trained]),
        Series("held out", [(row["step"], row["validation"]) for row in validated]),
    ]
    ends = (
        f"from {validated[0]['validation']:.4g} to {validated[-1]['validation']:.4g}" if validated else "not measured"
    )
    losses = ", ".join(f"{weight:g} {name}" for name, weight in settings.get("loss", {}).items())
    section.figures.append(
        plot(series, "step", losses or "loss", f"Loss by step; on held-out windows {ends}.", "Loss while training.")
    )
    result = run.files.get("result")
    if result:
        perplexity = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
        if perplexity:
            section.tables.append(
                Table(
                    [["perplexity on held-out windows", *perplexity], ["", *(number(v) for v in perplexity.values())]]
                )
            )
        gaps = "; ".join(
            f"blocks {gap['start']} to {gap['stop'] - 1} became {len(gap['places'])}" for gap in result["gaps"]
        )
        if gaps:
            section.text.append(f"{gaps[0].upper()}{gaps[1:]}.")
        training = result["training"]
        section.text.append(
            f"{training['tokens']:,} tokens in {training['steps']} steps; the state after step {training['best_step']} "
            "was kept."
        )
    return section
