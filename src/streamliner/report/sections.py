"""Files of runs -> sections: text, tables and pictures, to be written as HTML or Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError
from streamliner.format import number
from streamliner.report.figures import Figure, Series, matrix, plot

FILES = ("run.json", "frontier.json", "plan.json", "similarity.json", "healing.json", "result.json")
RESULTS = ("evaluation.json", "benchmark.json")


@dataclass(frozen=True)
class Table:
    """Cells as text; the first row names the columns."""

    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A part of the report."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A run folder: its name, what its files hold by their name without .json, and the losses of a training."""

    name: str
    files: dict[str, Any]
    history: list[dict[str, Any]]


def read_runs(folders: Sequence[str]) -> tuple[list[Run], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run folders, with what lies in their `healing`; evaluations and benchmarks, in folders or named themselves.

    Raises:
        OutputError: there is no such folder or file, or nothing in it that a report could show.
    """
    runs: list[Run] = []
    evaluations: list[dict[str, Any]] = []
    benchmarks: list[dict[str, Any]] = []
    for name in folders:
        path = Path(name).expanduser()
        if path.is_file():
            value = _read(path)
            (benchmarks if "device" in value else evaluations).append(value)
            continue
        found = False
        for folder in (path, path / "healing"):
            files = {file.removesuffix(".json"): _read(folder / file) for file in FILES if (folder / file).is_file()}
            history = folder / "history.jsonl"
            rows = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
            if files:
                runs.append(Run(str(folder), files, rows))
            for file, results in zip(RESULTS, (evaluations, benchmarks), strict=True):
                if (folder / file).is_file():
                    results.append(_read(folder / file))
                    found = True
            found = found or bool(files)
        if not found:
            raise OutputError(
                f"There is no run in {name}.", "Give folders that search, prune or heal wrote, or their JSON files."
            )
    return runs, evaluations, benchmarks


def make_sections(
    runs: Sequence[Run], evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]
) -> list[Section]:
    """All that the files tell, in the order of the work."""
    searches = [run for run in runs if "frontier" in run.files]
    sections = [_search(run) for run in searches]
    if searches:
        sections.append(_frontier(searches))
    sections += [_healing(run) for run in runs if run.history]
    sections += [_evaluation(each) for each in evaluations]
    sections += [_benchmark(each) for each in benchmarks]
    sections.append(_reproduce(runs, [*evaluations, *benchmarks]))
    return sections


def _search(run: Run) -> Section:
    frontier, plan = run.files["frontier"], run.files.get("plan", {})
    removed = plan.get("removed", [])
    section = Section(f"Search: {frontier['method']}")
    section.text.append(
        f"Of {plan.get('num_blocks', '?')} blocks of {plan.get('model', {}).get('name', 'the model')} the plan removes "
        f"{len(removed)}: {', '.join(map(str, removed))}."
    )
    rows = [["removed", "blocks", "loss", "standard error", "perplexity"]]
    rows.append(["0", "", _loss(frontier["dense_loss"]), "", _perplexity(frontier["dense_loss"])])
    for point in frontier["points"]:
        blocks = ", ".join(map(str, point["removed"]))
        error = _loss(point["standard_error"])
        rows.append([str(len(point["removed"])), blocks, _loss(point["loss"]), error, _perplexity(point["loss"])])
    section.tables.append(Table(rows))
    candidates = [point["candidates"] or {} for point in frontier["points"]]
    rounds = [
        Series(f"{number} removed", sorted((int(block), value) for block, value in each.items()), line=False)
        for number, each in enumerate(candidates, 1)
        if each
    ]
    if rounds:
        best = "; ".join(
            f"{number} removed: block {min(each, key=lambda block: each[block])} of {len(each)} candidates"
            for number, each in enumerate(candidates, 1)
            if each
        )
        section.figures.append(
            plot(
                rounds[:6],
                "block, or first block of the interval",
                "score",
                f"Score of every candidate by round. Least: {best}.",
                "The search: score of each candidate, by the number of blocks removed with it. Lower goes first.",
                log=all(value > 0 for each in candidates for value in each.values()),
            )
        )
    if "similarity" in run.files:
        cosine = run.files["similarity"]["cosine"]
        section.figures.append(
            matrix(
                cosine,
                removed,
                f"Mean cosine between streams at all pairs of {len(cosine)} depths; removed blocks are marked.",
                "Cosine between the streams at two depths; strokes mark removed blocks.",
            )
        )
    return section


def _frontier(searches: Sequence[Run]) -> Section:
    section = Section("Frontier")
    series = []
    for run in searches:
        frontier = run.files["frontier"]
        points = [(0.0, math.exp(frontier["dense_loss"]))] + [
            (float(len(point["removed"])), _exp(point["loss"]))
            for point in frontier["points"]
            if point["loss"] is not None
        ]
        errors = [0.0] + [_exp(point["loss"]) * (point["standard_error"] or 0) for point in frontier["points"]]
        series.append(Series(f"{frontier['method']} ({Path(run.name).name})", points, errors))
    section.figures.append(
        plot(
            series,
            "blocks removed",
            "perplexity on the calibration set",
            "Perplexity against blocks removed, for each search; the tables above hold the numbers.",
            "Calibration perplexity by blocks removed, with one standard error. The calibration set chose the blocks, "
            "so judge models on other text.",
            log=True,
        )
    )
    return section


def _healing(run: Run) -> Section:
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


def _evaluation(value: dict[str, Any]) -> Section:
    section = Section("Evaluation")
    names = [Path(model["model"]).name for model in value["models"]]
    if value["models"] and value["models"][0]["perplexity"]:
        rows = [["perplexity", *names]]
        for place, text in enumerate(value["models"][0]["perplexity"]):
            cells = [model["perplexity"][place] for model in value["models"]]
            label = (
                f"{text['source']}: {text['predictions']:,} tokens, windows of {text['window']}, "
                f"one every {text['stride']}" + (", BOS" if text["bos"] else "")
            )
            rows.append([label, *(number(cell["perplexity"]) for cell in cells)])
            rows.append(["loss ± standard error", *(_with_error(c["loss"], c["standard_error"]) for c in cells)])
        section.tables.append(Table(rows))
    if value["tasks"]:
        rows = [["task", *names]]
        for task in value["tasks"]:
            for metric in value["models"][0]["tasks"][task["name"]]["metrics"]:
                found = [model["tasks"][task["name"]]["metrics"].get(metric) for model in value["models"]]
                rows.append([f"{task['name']} {metric}", *("" if v is None else f"{v:.4g}" for v in found)])
        section.tables.append(Table(rows))
    for compared in value["compared"]:
        for source, behind in compared["loss_behind"].items():
            section.text.append(
                f"{Path(compared['model']).name} is {_with_error(behind['mean'], behind['standard_error'])} nats "
                f"behind the dense model on {source} (mean and standard error of the differences, window by window)."
            )
        if not compared["tasks"]:
            continue
        rows = [
            [
                Path(compared["model"]).name,
                *("accuracy, change", "95 % interval", "McNemar p", "stability"),
                *("stays right", "gets wrong", "gets right", "stays wrong"),
            ]
        ]
        for name, task in compared["tasks"].items():
            change, flips = task["accuracy_difference"], task["flips"]
            rows.append(
                [
                    name,
                    f"{change['mean']:+.3f}",
                    f"{change['low']:+.3f} to {change['high']:+.3f}",
                    f"{change['p_value']:.2g}",
                    f"{task['stability']:.3f}",
                    *(str(flips[key]) for key in ("right_right", "right_wrong", "wrong_right", "wrong_wrong")),
                ]
            )
        rows.append(["mean", "", "", "", f"{compared['mean_stability']:.3f}", "", "", "", ""])
        section.tables.append(Table(rows))
    for sample in value.get("samples", []):
        rows = [["begun with", sample["prompt"]]]
        rows += [[name, text] for name, text in zip(names, sample["continuations"], strict=True)]
        section.tables.append(Table(rows))
    for draft in value.get("drafts", []):
        counts = (f"tokens per check, {count} proposed" for count in draft["greedy"]["tokens_per_verification"])
        rows = [[f"As a draft: {Path(draft['model']).name}", "kept", *counts]]
        for kind in ("greedy", "sampled"):
            rates = (f"{rate:.2f}" for rate in draft[kind]["tokens_per_verification"].values())
            rows.append([kind, f"{draft[kind]['acceptance_rate']:.1%}", *rates])
        section.tables.append(Table(rows))
    return section


def _benchmark(value: dict[str, Any]) -> Section:
    section = Section("Speed")
    settings = value["settings"]
    section.text.append(
        f"{value['dtype']} on {value['device']}: a prompt of {settings['prompt_tokens']} tokens; "
        f"{settings['batch_size']} x {settings['context_tokens']} tokens, {settings['new_tokens']} generated for each. "
        f"Medians of {settings['repeats']}, slowest and fastest in brackets."
    )
    rows = [["", *(Path(model["model"]).name for model in value["models"])]]
    for name in ("prompt", "generation"):
        cells = (model[name] for model in value["models"])
        rows.append(
            [
                f"{name}, tokens per second",
                *(
                    f"{number(c['tokens_per_second'])} ({number(c['slowest'])} to {number(c['fastest'])})"
                    for c in cells
                ),
            ]
        )
    rows.append(["blocks", *(str(model["blocks"]) for model in value["models"])])
    rows.append(["parameters", *(f"{model['parameters']:,}" for model in value["models"])])
    section.tables.append(Table(rows))
    if value["compared"]:
        rows = [
            ["", "", "speed-up", "in a round", "time in blocks", "their removal allows", "share of parameters allows"]
        ]
        for compared in value["compared"]:
            for name in ("prompt", "generation"):
                each = compared[name]
                rows.append(
                    [
                        Path(compared["model"]).name,
                        name,
                        f"{each['speed_up']:.3f}",
                        f"{each['lowest']:.3f} to {each['highest']:.3f}",
                        f"{each['time_in_blocks']:.0%}",
                        f"{each['allowed_by_time']:.3f}",
                        f"{compared['parameters_ratio']:.3f}",
                    ]
                )
        section.tables.append(Table(rows))
    return section


def _reproduce(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> Section:
    """Commands, versions, hardware and hashes."""
    section = Section("How to reproduce it")
    sources = [run.files.get("run") or run.files.get("healing") or {} for run in runs] + list(results)
    rows = [["command"]]
    commands = [" ".join(["streamliner", *source["command"][1:]]) for source in sources if source.get("command")]
    rows += [[command] for command in dict.fromkeys(commands)]
    if len(rows) > 1:
        section.tables.append(Table(rows))
    versions = {name: version for source in sources for name, version in source.get("versions", {}).items()}
    if versions:
        section.text.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    hardware = {json.dumps(source["hardware"], sort_keys=True) for source in sources if source.get("hardware")}
    section.text += [f"Hardware: {each}" for each in sorted(hardware)]
    for run in runs:
        calibration = run.files.get("run", {}).get("calibration")
        if calibration:
            section.text.append(
                f"Calibration set: {calibration['source']}, {calibration['windows']} windows of "
                f"{calibration['sequence_length']} tokens, seed {calibration['seed']}, "
                f"SHA-256 {calibration['sha256'][:16]}."
            )
    return section


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise OutputError(f"{path} cannot be read: {error}") from error


def _exp(loss: float | None) -> float:
    return math.nan if loss is None else math.exp(min(loss, 700))


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def _perplexity(loss: float | None) -> str:
    return "" if loss is None else number(_exp(loss))


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
