"""Check every decoder type of the installed transformers, and write the table of `docs/architectures.md`.

    python tests/architectures.py                 all types, two processes; writes the table
    python tests/architectures.py gemma3 jamba    only these types; prints JSON

A tiny random model of each type is built from its config class (`zoo.py`), and blocks are removed: one, two, the first,
the last, neighbours, all of a kind. Each removal is either refused with a reason before any weight is read, or the cut
model is compared with bypass on the dense model, in memory and reloaded from disk, in float32: logits, and greedy
generation with a cache and without, alone and left-padded in a batch, as far as these agree in the dense model. Then
`sleb` and `streamline` search the type, and what they find is cut. Anything else is a failure: exit status 1.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent / "support"))

import torch
import transformers

import zoo
from close import assert_close
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.memory import cut_model
from streamliner.cut.structure import Structure
from streamliner.cut.verification import Reference, reference_outputs, verify_checkpoint
from streamliner.errors import StreamlinerError, UnsupportedModelError
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.stack import block_kinds
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet

MARKER = "<!-- tests/architectures.py writes what follows -->"
DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"
REMOVALS = ((2,), (1, 3), (0,), (5,), (2, 3))
METHODS = ("sleb", "streamline")
SAMPLE = torch.randint(8, 120, (1, 24), generator=torch.Generator().manual_seed(0))
WINDOWS = torch.randint(8, 120, (2, 16), generator=torch.Generator().manual_seed(1))


@dataclass
class Report:
    """What was found for one type.

    Attributes:
        model_type: as in a config.json.
        status: "cut", "refused" (the whole type), "not built" or "failed".
        reason: why, for a status other than "cut".
        kinds: the kinds of its blocks.
        cut, refused: of the removals tried, those after which the model agrees with bypass, and those refused.
        reasons: why removals were refused.
        generation: which generation was compared: "cached, padded", "cached" or "".
        searches: removed blocks by method, or why there are none.
        seconds: time taken.
    """

    model_type: str
    status: str = "cut"
    reason: str = ""
    kinds: list[str] = field(default_factory=list)
    cut: list[tuple[int, ...]] = field(default_factory=list)
    refused: list[tuple[int, ...]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    generation: str = ""
    searches: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def check(model_type: str, folder: Path) -> Report:
    """Check one type; its checkpoints go into `folder`. Raises if a removal that is not refused is wrong."""
    report = Report(model_type)
    if model_type in zoo.UNBUILDABLE:
        report.status, report.reason = "not built", zoo.UNBUILDABLE[model_type]
        return report
    model = zoo.tiny_model(model_type)
    model.save_pretrained(folder / "dense")
    try:
        blocks, structure = Blocks(model), Structure.of(model)
    except UnsupportedModelError as error:
        report.status, report.reason = "refused", str(error.args[0])
        return report
    kinds = block_kinds(blocks.stack)
    report.kinds = list(dict.fromkeys(kinds))
    expected, generation = reference_outputs(blocks, (), SAMPLE), set()
    whole_kinds = [tuple(i for i, found in enumerate(kinds) if found == kind) for kind in report.kinds]
    for removed in dict.fromkeys((*REMOVALS, *(blocks for blocks in whole_kinds if len(blocks) < len(kinds)))):
        reason = structure.refusal(removed)
        if reason:
            report.refused.append(removed)
            report.reasons += [reason] if reason not in report.reasons else []
        else:
            generation.add(cut_and_compare(blocks, structure, removed, expected, folder))
            report.cut.append(removed)
    probe = Probe(blocks, CalibrationSet(WINDOWS, {}), refusal=structure.refusal)
    for method in METHODS:
        try:
            frontier = run_method(probe, make_method(method, {}), method, 2)
        except StreamlinerError as error:
            report.searches[method] = str(error.args[0])
            continue
        found = tuple(sorted(frontier.points[-1].removed))
        report.searches[method] = ", ".join(map(str, found))
        if found not in report.cut:  # compared, but not counted: rounding may decide which blocks a search finds
            generation.add(cut_and_compare(blocks, structure, found, expected, folder))
    if not report.cut:
        report.status, report.reason = "refused", report.reasons[0]
    report.generation = min(generation, key=len, default="")
    return report


def cut_and_compare(
    blocks: Blocks, structure: Structure, removed: tuple[int, ...], dense: Reference, folder: Path
) -> str:
    """Cut in memory and on disk, and compare both with bypass. Returns which generation was compared.

    `dense` is the reference of the whole model: its generation is that of every cut's reference, and takes long.
    """
    with torch.inference_mode(), blocks.bypass(removed):
        expected = replace(dense, logits=blocks.forward(SAMPLE).logits)
    cut = cut_model(blocks.model, removed)
    with torch.inference_mode():
        assert_close(cut(input_ids=SAMPLE, use_cache=False).logits, expected.logits)
    out = folder / "-".join(map(str, ("cut", *removed)))
    out.mkdir(exist_ok=True)
    cut_checkpoint(folder / "dense", out, structure, removed)
    found = verify_checkpoint(out, expected)
    checked = (("cached", found.cached_generation), ("padded", found.padded_generation))
    return ", ".join(name for name, agreed in checked if agreed)


def check_alone(model_type: str) -> Report:
    """`check` in a worker process; a failure becomes a report."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            report = check(model_type, Path(folder))
            report.seconds = time.perf_counter() - start
            return report
        except Exception as error:  # the purpose of this script: every failure is shown with its type
            text = f"{type(error).__name__}: {error}".replace("\n", " ")
            return Report(model_type, "failed", text[:300])


def check_all(model_types: Iterable[str]) -> list[Report]:
    """Reports in the order of `model_types`, from two processes."""
    wanted = list(model_types)
    reports = {}
    with ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(check_alone, model_type) for model_type in wanted]
        for number, future in enumerate(as_completed(futures), 1):
            report = future.result()
            reports[report.model_type] = report
            print(f"{number} of {len(wanted)}, {report.seconds:.0f} s: {describe(report)}", file=sys.stderr, flush=True)
    return [reports[model_type] for model_type in wanted]


def describe(report: Report) -> str:
    """One line."""
    if report.status != "cut":
        return f"{report.model_type}: {report.status}: {report.reason}"
    refused = f", {len(report.refused)} refused: {report.reasons}" if report.refused else ""
    return (
        f"{report.model_type}: {len(report.cut)} within 1e-5{refused}; "
        f"generation: {report.generation or 'not compared'}; {report.searches}"
    )


def row(report: Report) -> str:
    """The type's row in the document."""
    if report.status != "cut":
        return f"| `{report.model_type}` | {report.status} | | | | {report.reason} |"
    tried = len(report.cut) + len(report.refused)
    found = "; ".join(f"{method}: {blocks}" for method, blocks in report.searches.items() if blocks[0].isdigit())
    return (
        f"| `{report.model_type}` | {'; '.join(report.kinds)} | {len(report.cut)} of {tried} | "
        f"{report.generation or 'no'} | {found} | {' '.join(reason[:160] for reason in report.reasons)} |"
    )


def written_rows(text: str) -> dict[str, str]:
    """Model type -> its row in the document."""
    return {match[1]: match[0] for match in re.finditer(r"^\| `([^`]+)` \|.*$", text, re.MULTILINE)}


def comparable(row: str) -> list[str]:
    """The cells of a row but for the searches: between two blocks of almost equal loss, rounding decides."""
    cells = row.split(" | ")
    return cells[:4] + cells[5:]


def document(reports: list[Report], text: str) -> str:
    """`text` with everything after the marker replaced."""
    count = {status: sum(r.status == status for r in reports) for status in ("cut", "refused", "not built", "failed")}
    done, refused = (sum(len(getattr(report, name)) for report in reports) for name in ("cut", "refused"))
    lines = [
        f"With transformers {transformers.__version__}, {len(reports)} types: {count['cut']} are cut, "
        f"{count['refused']} refused whole, {count['not built']} could not be built as tiny models, "
        f"{count['failed']} failed. "
        f"Of the removals tried, {done} were cut with logits within 1e-5 of bypass, and {refused} were refused.",
        "",
        "| type | kinds of block | removals cut | generation compared | found by search | refused because |",
        "|---|---|---|---|---|---|",
        *(row(report) for report in reports),
    ]
    return text[: text.index(MARKER)] + MARKER + "\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    asked = sys.argv[1:]
    results = check_all(asked or zoo.model_types())
    if asked:
        print(json.dumps([asdict(report) for report in results], indent=1))
    else:
        DOCUMENT.write_text(document(results, DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(any(report.status == "failed" for report in results))
