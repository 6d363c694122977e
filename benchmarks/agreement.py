"""Whether `--search-effort adaptive` finds the list of the exact search, over models, texts, seeds and precisions.

    python benchmarks/agreement.py MODEL... --source a.jsonl --source b.jsonl --seeds 4 -o found.jsonl

Every combination is one search by each effort on the same windows, SLEB's first three rounds or more (`--remove`). What
exact measured is not measured again, so that adaptive costs time only where it goes another way. A line of JSON is
printed for each: the lists, how many losses adaptive asked for, as a share of those of exact, and where the lists
differ, how much worse the other set is: the losses of both sets on all windows, which a search reports. The last line
sums up. With -o the lines are kept in a file, and combinations that it has are not searched again.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model, load_tokenizer
from streamliner.model.source import locate
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.windows import calibration_set


def compare(blocks: Blocks, text: Any, remove: int) -> dict[str, Any]:
    """Both searches on the same windows; adaptive knows what exact measured, and counts what it asks for."""
    probe = Probe(blocks, text)
    points = {
        effort: run_method(probe, make_method("sleb", {"effort": effort}), "sleb", remove).points
        for effort in ("exact", "adaptive")
    }
    exact = sum(len(point.candidates or ()) for point in points["exact"]) * probe.num_windows
    lists = {effort: list(found[-1].removed) for effort, found in points.items()}
    differs = [a.loss - e.loss for a, e in zip(points["adaptive"], points["exact"], strict=True)]
    margins = [point.margin for point in points["adaptive"] if point.margin is not None]
    return lists | {
        "same": lists["exact"] == lists["adaptive"],
        "same_set": sorted(lists["exact"]) == sorted(lists["adaptive"]),
        "worse_by": max(differs, key=abs),  # nats, of the round where they are furthest apart
        "at_the_end": differs[-1],
        "smallest_margin": min(margins, default=None),
        "measured": sum(point.window_losses or 0 for point in points["adaptive"]) / exact,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--source", action="append", default=[], help="python-docs without one")
    parser.add_argument("--dtype", action="append", default=[], help="float32 without one")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--remove", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    known = asked.output.read_text().splitlines() if asked.output and asked.output.exists() else []
    rows = [json.loads(line) for line in known]
    for name, dtype in product(asked.models, asked.dtype or ["float32"]):
        source = locate(name)
        blocks, tokenizer = Blocks(load_model(source, dtype=dtype)), load_tokenizer(source)
        for text_name, seed in product(asked.source or ["python-docs"], range(asked.seeds)):
            what = {"model": Path(name).name, "dtype": dtype, "text": Path(text_name).name, "seed": seed}
            what |= {"windows": asked.windows, "tokens": asked.tokens}
            if any(what.items() <= row.items() for row in rows):
                continue
            text = calibration_set(
                text_name, tokenizer, num_samples=asked.windows, sequence_length=asked.tokens, seed=seed
            )
            rows.append(what | compare(blocks, text, asked.remove))
            print(json.dumps(rows[-1]), flush=True)
            if asked.output:
                with asked.output.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    different = [row for row in rows if not row["same"]]
    print(
        json.dumps(
            {
                "searches": len(rows),
                "same_list": len(rows) - len(different),
                "same_set": sum(row["same_set"] for row in rows),
                "worst": max((row["worse_by"] for row in rows), default=0.0),
                "worst_at_the_end": max((row["at_the_end"] for row in rows), default=0.0),
                "mean_measured": sum(row["measured"] for row in rows) / max(1, len(rows)),
            }
        )
    )


if __name__ == "__main__":
    main()
