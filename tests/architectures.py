"""Check every decoder type of the installed transformers, and write `docs/architectures.md`.

    python tests/architectures.py                 all types, two processes; writes the table
    python tests/architectures.py gemma3 jamba    only these, printed

Of each type a tiny random model is built from its config class (`zoo.py`), and blocks are removed: one, two, the first,
the last, neighbours, all of a kind. Each removal is either refused with a reason, before any weight is touched, or must
be right: logits of the model cut in memory and of the checkpoint cut on disk and reloaded against bypass on the dense
model, in float32; greedy generation with a cache as without, alone and left-padded in a batch, where the dense model
itself does so. Then `sleb` and `streamline` search the type, and what they find is cut. Anything else is a failure:
exit status 1.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent / "support"))

import torch
import transformers

import zoo
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.memory import cut_model
from streamliner.cut.structure import Structure
from streamliner.cut.verify import expect, verify
from streamliner.errors import StreamlinerError, UnsupportedModelError
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.shell import block_kinds
from streamliner.search.find import search
from streamliner.search.registry import make_method
from streamliner.text.windows import CalibrationSet

MARKER = "<!-- below: written by tests/architectures.py -->"
DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"
REMOVALS = ((2,), (1, 3), (0,), (5,), (2, 3))
METHODS = ("sleb", "streamline")
SAMPLE = torch.randint(8, 120, (1, 24), generator=torch.Generator().manual_seed(0))
WINDOWS = torch.randint(8, 120, (2, 16), generator=torch.Generator().manual_seed(1))


@dataclass
class Report:
    """What was found of one type.

    Attributes:
        model_type: as in a config.json.
        status: "cut", "refused" (the whole type, see `reason`), "not built" or "failed".
        reason: of a status other than "cut".
        kinds: the kinds of its blocks.
        exact, close, refused: removals that were cut with logits equal to the bit, within the tolerance, or refused.
        reasons: why removals were refused.
        generation: what of generation was compared: "cached, padded", "cached" or "".
        searches: removed blocks by method, or why there is none.
    """

    model_type: str
    status: str = "cut"
    reason: str = ""
    kinds: list[str] = field(default_factory=list)
    exact: list[tuple[int, ...]] = field(default_factory=list)
    close: list[tuple[int, ...]] = field(default_factory=list)
    refused: list[tuple[int, ...]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    generation: str = ""
    searches: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def check(model_type: str, folder: Path) -> Report:
    """Check one type; `folder` is for its checkpoints. Raises whatever is wrong with an accepted removal."""
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
    generation: set[str] = set()
    whole_kinds = [tuple(i for i, found in enumerate(kinds) if found == kind) for kind in report.kinds]
    for removed in dict.fromkeys((*REMOVALS, *(blocks for blocks in whole_kinds if len(blocks) < len(kinds)))):
        check_removal(model, blocks, structure, removed, folder, report, generation)
    probe = Probe(blocks, CalibrationSet(WINDOWS, {}), refusal=structure.refusal)
    for method in METHODS:
        try:
            frontier = search(probe, make_method(method, {}), method, 2)
        except StreamlinerError as error:
            report.searches[method] = str(error.args[0])
            continue
        found = tuple(sorted(frontier.points[-1].removed))
        report.searches[method] = ", ".join(map(str, found))
        if found not in (*REMOVALS, *report.exact, *report.close):
            check_removal(model, blocks, structure, found, folder, report, generation)
    if not (report.exact or report.close):
        report.status, report.reason = "refused", report.reasons[0]
    report.generation = min(generation, key=len, default="")
    return report


def check_removal(
    model: Any,
    blocks: Blocks,
    structure: Structure,
    removed: tuple[int, ...],
    folder: Path,
    report: Report,
    generation: set[str],
) -> None:
    """Cut in memory and on disk and compare, or note why not."""
    reason = structure.refusal(removed)
    if reason:
        report.refused.append(removed)
        report.reasons += [reason] if reason not in report.reasons else []
        return
    expected = expect(blocks, removed, SAMPLE)
    cut = cut_model(zoo.tiny_model(report.model_type), removed)
    with torch.inference_mode():
        logits = cut(input_ids=SAMPLE, use_cache=False).logits
    difference = (logits - expected.logits).abs().max().item()
    scale = max(expected.logits.abs().max().item(), 1.0)
    assert difference <= 1e-5 * scale, f"in memory, without {removed}, logits differ by {difference}"
    out = folder / "-".join(map(str, ("cut", *removed)))
    out.mkdir(exist_ok=True)
    cut_checkpoint(folder / "dense", out, structure, removed)
    found = verify(out, expected)
    (report.exact if found.exact and difference == 0 else report.close).append(removed)
    checked = (("cached", found.cached_generation), ("padded", found.padded_generation))
    generation.add(", ".join(name for name, agreed in checked if agreed))


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
        except Exception as error:  # the point of this script: whatever goes wrong is shown for its type
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
        f"{report.model_type}: {len(report.exact)} to the bit, {len(report.close)} within 1e-5{refused}; "
        f"generation: {report.generation or 'not compared'}; {report.searches}"
    )


def row(report: Report) -> str:
    """The type's row in the document."""
    if report.status != "cut":
        return f"| `{report.model_type}` | {report.status} | | | | {report.reason} |"
    done, all_ = len(report.exact) + len(report.close), len(report.exact) + len(report.close) + len(report.refused)
    rounding = f", {len(report.close)} of them but for rounding" if report.close else ""
    found = "; ".join(f"{method}: {blocks}" for method, blocks in report.searches.items() if blocks[0].isdigit())
    return (
        f"| `{report.model_type}` | {'; '.join(report.kinds)} | {done} of {all_}{rounding} | "
        f"{report.generation or 'no'} | {found} | {' '.join(reason[:160] for reason in report.reasons)} |"
    )


def document(reports: list[Report], text: str) -> str:
    """`text` with everything below the marker made anew."""
    count = {status: sum(r.status == status for r in reports) for status in ("cut", "refused", "not built", "failed")}
    removals = [sum(len(getattr(r, name)) for r in reports) for name in ("exact", "close", "refused")]
    lines = [
        f"With transformers {transformers.__version__}, {len(reports)} types: {count['cut']} are cut, "
        f"{count['refused']} refused whole, {count['not built']} could not be built tiny, {count['failed']} failed. "
        f"Of the removals that were tried, {removals[0]} were cut with logits equal to the bit, {removals[1]} within "
        f"1e-5 after a fold, and {removals[2]} refused.",
        "",
        "| type | kinds of block | removals cut | generation checked | the searches took | refused because |",
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
