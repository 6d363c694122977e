"""The training of a cut model: losses by step, and the result."""

from pathlib import Path

from streamliner.format import counted, number
from streamliner.heal.folds.fold_table import fold_table
from streamliner.report.figures import Point, Series, plot_lines
from streamliner.report.read import Run
from streamliner.report.section import Section


def healing_section(run: Run) -> Section:
    """A training, finished or not."""
    settings, folder = run.files.get("healing", {}).get("settings", {}), Path(run.name)
    losses: dict[str, float] = settings.get("loss", {})
    trained = [f"fold {settings['fold']}"] if settings.get("fold") else []
    trained += [settings["network"]] if settings.get("network", "none") != "none" else []
    trained += [f"LoRA of rank {settings['lora']}"] if settings.get("lora") else []
    blocks = str(settings.get("train_blocks", 0))
    trained += [] if blocks == "0" else ["all kept blocks" if blocks == "all" else f"last {blocks} kept blocks"]
    trained += ["head"] if settings.get("train_head") else []
    owner = folder.parent.name if folder.name == "healing" else folder.name
    fits = "" if trained == [f"fold {settings.get('fold')}"] else f", {' and '.join(losses)}"
    section = Section(f"Healing: {' and '.join(trained)}{fits} ({owner})")
    if settings and fits:
        section.text.append(
            f"Trained on {', '.join(name for name, _ in settings['data'])}; batches of {settings['batch_size']} "
            f"windows, learning rate {settings['learning_rate']:g}, seed {settings['seed']}."
        )
    training, held_out = (
        [Point(row["step"], row[name]) for row in run.history if row.get(name) is not None]
        for name in ("loss", "validation")
    )
    series = [Series("training", training), Series("held out", held_out)]
    label = " + ".join(f"{weight:g} {name}" for name, weight in losses.items()) or "loss"
    ends = f"from {held_out[0].y:.4g} to {held_out[-1].y:.4g}" if held_out else "not measured"
    values = f"Loss on held-out windows: {ends}."
    if run.history:
        section.figures.append(plot_lines(series, "step", label, "Training loss by step.", values))
    result = run.files.get("result")
    if result:
        found = {name: number(value) for name, value in result["validation_perplexity"].items() if value is not None}
        if found:
            section.tables.append([["", *found], ["perplexity on held-out windows", *found.values()]])
        for gap in result["gaps"]:
            blocks = ", ".join(map(str, range(gap["start"], gap["stop"])))
            section.text.append(f"Blocks {blocks} became {counted(len(gap['places']), 'block')}.")
        if result.get("folds"):
            section.tables.append([list(row) for row in fold_table(result["folds"]).rows])
        if result["training"]:
            tokens, steps, best = (result["training"][key] for key in ("tokens", "steps", "best_step"))
            done = f"{tokens:,} tokens in {counted(steps, 'step')}"
            section.text.append(f"{done}; the weights after step {best} were kept.")
    return section
