"""A model that is larger than the memory it may use: its weights stay on disk, a block at a time is loaded.

    python benchmarks/offload.py --limit cgroup      needs a writable memory cgroup (version 1 or 2)
    python benchmarks/offload.py --limit rlimit      RLIMIT_DATA: private memory, without mapped files
    python benchmarks/offload.py --heal lm           heals it with this loss, and once more in memory without a limit

Makes a synthetic Llama-shaped checkpoint in float32, at least three times the limit. Either searches it with SLEB under
the limit, and compares the bytes of weights that were read with their size times the rounds; or cuts two blocks, and
compares the losses of healing under the limit with those in memory. The last line is JSON.
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
from typing import Any

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


def command(*arguments: str) -> None:
    """A verb of streamliner in this process."""
    from streamliner.cli import main as streamliner

    try:
        streamliner([*arguments])
    except SystemExit as stop:
        if stop.code:
            raise


def child_heal(asked: argparse.Namespace) -> None:
    """A healing by the command line, under the limit and offloaded, or as it is."""
    folder, limited = Path(asked.child), asked.limit != "none"
    if asked.limit == "rlimit":
        resource.setrlimit(resource.RLIMIT_DATA, (asked.bytes, asked.bytes))
    out = folder / f"healed-{asked.limit}"
    arguments = ["heal", str(folder / "cut"), "--dense", str(folder / "dense"), "-o", str(out), "--loss", asked.heal]
    arguments += ["--steps", str(asked.steps), "--global-batch-size", str(asked.windows), "--micro-batch"]
    arguments += [str(asked.windows), "--sequence-length", str(asked.tokens), "--validation-windows"]
    arguments += [str(asked.windows), "--validations", "1", "--device", "cpu", "--no-verify", "-q"]
    start = time.perf_counter()
    command(*arguments, *(["--offload", "disk"] if limited else ["--gradient-checkpointing"]))
    rows = [json.loads(line) for line in (folder / f"{out.name}.run" / "history.jsonl").open()]
    result = {
        "losses": [row[key] for row in rows for key in ("loss", "validation") if row.get(key) is not None],
        "seconds": time.perf_counter() - start,
        "peak_resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


def run_child(folder: Path, group: Path | None, *more: str) -> dict[str, Any]:
    """This script once more, in the cgroup if there is one; what it printed last, and the peak of the cgroup."""
    procs = None if group is None else group / "cgroup.procs"
    process = subprocess.run(
        [sys.executable, __file__, "--child", str(folder), *sys.argv[1:], *more],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=None if procs is None else lambda: procs.write_text(str(os.getpid())),
    )
    if process.returncode:
        raise SystemExit(f"it failed under the limit: exit status {process.returncode}")
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    if group is not None:
        peak = group / ("memory.max_usage_in_bytes" if (GROUP / "memory").is_dir() else "memory.peak")
        found["peak_of_cgroup"] = int(peak.read_text())
    return found


def of_search(folder: Path, group: Path | None, total: int, asked: argparse.Namespace) -> dict[str, Any]:
    """What a search read, in reads of all blocks per round."""
    found = run_child(folder, group)
    of_blocks = total - 2 * 1024 * asked.hidden * 4 - asked.hidden * 4
    read = found["bytes_read"] - found["bytes_read_for_dense_and_check"]
    return found | {"window_groups": 1, "reads_per_round": read / of_blocks / asked.remove}


def of_healing(folder: Path, group: Path | None, asked: argparse.Namespace) -> dict[str, Any]:
    """The losses of healing under the limit beside those in memory, without its two middle blocks."""
    dense = folder / "dense"
    dense.mkdir()
    for file in [file for file in folder.iterdir() if file != dense]:
        file.rename(dense / file.name)
    for file in (Path(__file__).parent.parent / "tests" / "fixtures" / "tiny-llama").glob("token*"):
        shutil.copy(file, dense)  # it has as many words
    blocks = ",".join(str(asked.blocks // 2 + number) for number in range(2))
    command("cut", str(dense), "--blocks", blocks, "-o", str(folder / "cut"), "--no-verify", "-q")
    limited, free = run_child(folder, group), run_child(folder, None, "--limit", "none")
    pairs = zip(limited["losses"], free["losses"], strict=True)
    worst = max(abs(a - b) / abs(b) for a, b in pairs)
    return {"limited": limited, "in_memory": free, "worst_relative_difference": worst}


def enter_cgroup(limit: int) -> Path:
    """A memory cgroup with this limit."""
    first = GROUP / "memory" / "streamliner-benchmark"
    folder = first if (GROUP / "memory").is_dir() else GROUP / "streamliner-benchmark"
    folder.mkdir(exist_ok=True)
    (folder / ("memory.limit_in_bytes" if folder == first else "memory.max")).write_text(str(limit))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", choices=("cgroup", "rlimit", "none"), default="cgroup")
    parser.add_argument(
        "--heal", metavar="LOSS", help="heal with this loss; the trained block takes six times its size"
    )
    parser.add_argument("--steps", type=int, default=20, help="of healing")
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
        (child_heal if asked.heal else child)(asked)
        return
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    group = enter_cgroup(asked.bytes) if asked.limit == "cgroup" else None
    try:
        total = make_checkpoint(folder, asked.blocks, asked.hidden)
        print(f"{total / 1e9:.2f} GB of weights, {asked.bytes / 1e9:.2f} GB of memory ({asked.limit})", flush=True)
        found = of_healing(folder, group, asked) if asked.heal else of_search(folder, group, total, asked)
        size = {"bytes_of_weights": total, "weights_over_limit": total / asked.bytes}
        print(json.dumps(found | {"limit": asked.limit, "limit_bytes": asked.bytes} | size))
    finally:
        shutil.rmtree(folder)
        if group is not None:
            group.rmdir()


if __name__ == "__main__":
    main()
