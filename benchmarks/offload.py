"""A search of a model that is larger than the memory it may use: its weights stay on disk, a block at a time is loaded.

    python benchmarks/offload.py --limit cgroup      needs a writable memory cgroup (version 1 or 2)
    python benchmarks/offload.py --limit rlimit      RLIMIT_DATA: private memory, without mapped files

Makes a synthetic Llama-shaped checkpoint in float32, at least three times the limit, searches it with SLEB under the
limit, and compares the bytes of weights that were read with their size times the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")


def make_checkpoint(folder: Path, num_blocks: int, hidden: int) -> int:
    """Shard by shard, never whole in memory; returns the bytes of weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=hidden * 4,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    torch.manual_seed(0)
    shapes = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj.weight": (hidden * 4, hidden) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj.weight": (hidden, hidden * 4)}
    index, total = {}, 0
    for number in range(-1, num_blocks):
        if number < 0:
            tensors = {f"{name}.weight": torch.randn(1024, hidden) * 0.02 for name in ("model.embed_tokens", "lm_head")}
            tensors["model.norm.weight"] = torch.ones(hidden)
        else:
            prefix = f"model.layers.{number}."
            tensors = {prefix + name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}
            tensors |= {f"{prefix}{name}_layernorm.weight": torch.ones(hidden) for name in ("input", "post_attention")}
        file = f"model-{number + 1:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return total


def child(asked: argparse.Namespace) -> None:
    """The search, under the limit."""
    if asked.limit == "rlimit":
        resource.setrlimit(resource.RLIMIT_DATA, (asked.bytes, asked.bytes))
    import torch

    from streamliner.measure.probe import Probe
    from streamliner.model.session import open_model
    from streamliner.search.registry import make_method
    from streamliner.search.run_method import run_method
    from streamliner.settings import ModelSettings
    from streamliner.text.calibration import CalibrationSet

    blocks = open_model(asked.child, ModelSettings(device="cpu", offload="disk")).load()
    windows = torch.randint(1024, (asked.windows, asked.tokens), generator=torch.Generator().manual_seed(0))
    probe = Probe(blocks, CalibrationSet(windows, {}), memory_budget=asked.budget)
    start = time.perf_counter()
    probe.loss()
    before_rounds = probe.counters.bytes_read
    frontier = run_method(probe, make_method("sleb", {}), "sleb", asked.remove)
    result = {
        "removed": frontier.points[-1].removed,
        "bytes_read": probe.counters.bytes_read,
        "bytes_read_for_dense_and_check": before_rounds,
        "seconds": time.perf_counter() - start,
        "peak_resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


def enter_cgroup(limit: int) -> Path:
    """A memory cgroup with this limit."""
    first = GROUP / "memory" / "streamliner-benchmark"
    folder = first if (GROUP / "memory").is_dir() else GROUP / "streamliner-benchmark"
    folder.mkdir(exist_ok=True)
    (folder / ("memory.limit_in_bytes" if folder == first else "memory.max")).write_text(str(limit))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", choices=("cgroup", "rlimit"), default="cgroup")
    parser.add_argument("--bytes", type=int, default=2_000_000_000)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--remove", type=int, default=2)
    parser.add_argument("--budget", type=int, default=200_000_000)
    parser.add_argument("--folder", help="where the checkpoint is made (default: a temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked)
        return
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    group = enter_cgroup(asked.bytes) if asked.limit == "cgroup" else None
    try:
        total = make_checkpoint(folder, asked.blocks, asked.hidden)
        print(f"{total / 1e9:.2f} GB of weights, {asked.bytes / 1e9:.2f} GB of memory ({asked.limit})", flush=True)
        procs = None if group is None else group / "cgroup.procs"
        process = subprocess.run(
            [sys.executable, __file__, "--child", str(folder), *sys.argv[1:]],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=None if procs is None else lambda: procs.write_text(str(os.getpid())),
        )
        if process.returncode:
            raise SystemExit(f"the search failed under the limit: exit status {process.returncode}")
        found = json.loads(process.stdout.splitlines()[-1])
        embeddings = 2 * 1024 * asked.hidden * 4
        of_blocks = total - embeddings - asked.hidden * 4
        dense = found["bytes_read_for_dense_and_check"]
        if group is not None:
            peak = group / ("memory.max_usage_in_bytes" if (GROUP / "memory").is_dir() else "memory.peak")
            found["peak_of_cgroup"] = int(peak.read_text())
        result = found | {
            "limit": asked.limit,
            "limit_bytes": asked.bytes,
            "bytes_of_weights": total,
            "weights_over_limit": total / asked.bytes,
            "window_groups": 1,
            "reads_per_round": (found["bytes_read"] - dense) / of_blocks / asked.remove,
        }
        print(json.dumps(result))
    finally:
        shutil.rmtree(folder)
        if group is not None:
            group.rmdir()


if __name__ == "__main__":
    main()
