"""What the methods find, judged on text that they did not see.

    python benchmarks/quality.py MODEL --calibration TEXT --evaluation TEXT [--remove 6] [--methods sleb streamline]

For each method one search on the calibration text gives the frontier; each of its points is then measured on windows of
the evaluation text, by bypass, all methods on the same windows. The standard error is that of the loss, over windows.
A table to read, then JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model, load_tokenizer, silenced_transformers
from streamliner.model.source import locate
from streamliner.runs.folder import environment
from streamliner.runs.reporter import Reporter
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.windows import calibration_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="python-docs")
    parser.add_argument("--evaluation", default="python-docs:test")
    parser.add_argument("--remove", type=int, default=6)
    parser.add_argument("--methods", nargs="+", default=["sleb", "streamline"])
    parser.add_argument("--calibration-windows", type=int, nargs=2, default=(8, 256), metavar=("COUNT", "TOKENS"))
    parser.add_argument("--evaluation-windows", type=int, nargs=2, default=(64, 512), metavar=("COUNT", "TOKENS"))
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    reporter = Reporter(quiet=False)

    with silenced_transformers():
        source = locate(arguments.model)
        tokenizer = load_tokenizer(source)
        blocks = Blocks(load_model(source, dtype=arguments.dtype))
    sets = [
        calibration_set(text, tokenizer, num_samples=count, sequence_length=tokens)
        for text, (count, tokens) in (
            (arguments.calibration, arguments.calibration_windows),
            (arguments.evaluation, arguments.evaluation_windows),
        )
    ]
    for name, text in zip(("calibration", "evaluation"), sets, strict=True):
        print(f"{name}: {text}")
    held_out = Probe(blocks, sets[1])
    rows = [describe("dense", (), held_out.loss(), None, 0.0)]
    for name in arguments.methods:
        with reporter.progress(f"Searching ({name})") as progress:
            probe = Probe(blocks, sets[0], on_progress=progress)
            frontier = run_method(probe, make_method(name, {}), name, arguments.remove)
        for point in frontier.points:
            rows.append(describe(name, point.removed, held_out.loss(point.removed), point.loss, probe.counters.seconds))
    provenance = [text.provenance for text in sets]
    print(json.dumps({"rows": rows, "texts": provenance, "dtype": arguments.dtype} | environment()))


def describe(method: str, removed: tuple[int, ...], loss: Loss, calibration: float | None, seconds: float) -> dict:
    print(
        f"{method:12} {len(removed)}  perplexity {loss.perplexity:8.2f}  "
        f"loss {loss.mean:.4f} ± {loss.standard_error:.4f}  "
        f"blocks {', '.join(map(str, removed))}",
        flush=True,
    )
    return {
        "method": method,
        "removed": removed,
        "loss": dataclasses.asdict(loss) | {"mean": loss.mean, "standard_error": loss.standard_error},
        "calibration_loss": calibration,
        "search_seconds": seconds,
    }


if __name__ == "__main__":
    main()
