"""Peak memory of a search beside that of one dense forward of one window, each in a process of its own.

    python benchmarks/memory.py                     a Llama-shaped model with a large head (64k words)
    python benchmarks/memory.py MODEL

Prints (peak of the search - its budget) / peak of the forward; the last line is JSON. Peaks are of resident memory,
with the interpreter, its libraries and the weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model
from streamliner.model.source import locate
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet


def child(asked: argparse.Namespace) -> None:
    if asked.model:
        model = load_model(locate(asked.model))
    else:
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=65536, hidden_size=512, intermediate_size=2048, num_hidden_layers=16)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    words = model.config.get_text_config().vocab_size
    windows = torch.randint(8, words, (asked.windows, asked.tokens), generator=torch.Generator().manual_seed(0))
    blocks = Blocks(model)
    if asked.child == "forward":
        with torch.inference_mode():
            blocks.forward(windows[:1])
    else:
        probe = Probe(blocks, CalibrationSet(windows, {}), memory_budget=asked.budget, say=print)
        run_method(probe, make_method("sleb", {"effort": asked.child}), "sleb", asked.remove)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--remove", type=int, default=1)
    parser.add_argument("--budget", type=int, default=200_000_000)
    parser.add_argument("--child", choices=("forward", "exact", "adaptive"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked)
        return
    peaks = {}
    for name in ("forward", "exact", "adaptive"):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[name] = int(out.splitlines()[-1])
        print(f"{name}: {peaks[name] / 1e9:.2f} GB", flush=True)
    ratio = {name: (peaks[name] - asked.budget) / peaks["forward"] for name in ("exact", "adaptive")}
    print(json.dumps(vars(asked) | {"peak_bytes": peaks, "ratio_beyond_budget": ratio}))


if __name__ == "__main__":
    main()
