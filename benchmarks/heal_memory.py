"""Peak memory of healing by number of training tokens: it must not grow with them.

    python benchmarks/heal_memory.py [MODEL] [--tokens 50000 500000] [--network block] [--loss mse]

Each number of tokens is a process of its own, whose peak resident memory the system reports. Next to it is the memory
for the hidden states of these tokens at two depths, which the authors' script keeps. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from streamliner.format import human_bytes
from streamliner.model.load import load_config
from streamliner.model.source import locate
from streamliner.runs.folder import environment

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "tiny-llama"
CHILD = """
import resource, sys
from streamliner.cli import main
try:
    main(sys.argv[1:])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(FIXTURE))
    parser.add_argument("--blocks", default="4,5,6")
    parser.add_argument("--tokens", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--network", default="block")
    parser.add_argument("--loss", default="mse")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--data", default="python-docs")
    arguments = parser.parse_args()
    config = load_config(locate(arguments.model)).get_text_config(decoder=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut"
        run("cut", arguments.model, "--blocks", arguments.blocks, "-o", cut, "--no-verify")
        for tokens in arguments.tokens:
            out = Path(folder) / str(tokens)
            settings = ["--tokens", tokens, "--global-batch-size", 8, "--micro-batch", 4, "--validations", 2]
            settings += ["--sequence-length", arguments.sequence_length, "--data", arguments.data]
            settings += ["--network", arguments.network, "--loss", arguments.loss, "--dtype", "float32"]
            peak = run("heal", cut, "--dense", arguments.model, "-o", out, *settings)
            stored = 2 * tokens * config.hidden_size * 4
            rows.append({"tokens": tokens, "peak_bytes": peak, "stored_states_would_take": stored})
            print(f"{tokens:>9,} tokens  peak {human_bytes(peak)}  (stored states: {human_bytes(stored)})", flush=True)
    ratio = rows[-1]["peak_bytes"] / rows[0]["peak_bytes"]
    print(f"ratio of peaks {ratio:.3f}")
    print(json.dumps({"arguments": vars(arguments), "rows": rows, "ratio": ratio} | environment()))


def run(*arguments: object) -> int:
    command = [sys.executable, "-c", CHILD, *map(str, arguments), "--quiet"]
    # Without it glibc keeps an arena for each thread, which adds noise.
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"}
    )
    return int(done.stderr.split("peak")[-1]) * 1024


if __name__ == "__main__":
    main()
