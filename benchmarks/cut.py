"""Time and memory of `streamliner cut` on a synthetic checkpoint, next to `cp` of the bytes that it keeps.

    python benchmarks/cut.py FOLDER                     12 GB, 12 shards, 8 of 32 blocks, five rounds
    python benchmarks/cut.py FOLDER --gigabytes 2 --check       and every tensor compared to the byte
    python benchmarks/cut.py FOLDER --gigabytes 1 --kill 30     SIGKILL at as many random moments, and no times

FOLDER must not exist, is on the disk to measure, needs four times the checkpoint, and is removed at the end. A round
runs `cp` of an earlier cut, `cut --no-verify`, and the same with `--link`, in changing order. Before each the files it
reads are dropped from the page cache (the libraries are not), and each ends when its files are on the disk. Times are
of whole processes; `start` is that of the same command on a model of the same architecture with almost no weights.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

WIDTH, INNER, VOCABULARY, HEADS, KV_HEADS, BLOCKS = 4096, 11008, 64000, 32, 8, 32


def shapes(width: int, inner: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of 32 blocks, in the order in which transformers saves them."""
    kv = width // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for block in range(BLOCKS):
        parts = {
            "input_layernorm": (width,),
            "mlp.down_proj": (width, inner),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "post_attention_layernorm": (width,),
            "self_attn.k_proj": (kv, width),
            "self_attn.o_proj": (width, width),
            "self_attn.q_proj": (width, width),
            "self_attn.v_proj": (kv, width),
        }
        found |= {f"model.layers.{block}.{name}.weight": shape for name, shape in parts.items()}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def make(folder: Path, gigabytes: float, shard_gigabytes: float) -> None:
    """A checkpoint of random bytes, named, sharded and with an index as `save_pretrained` would."""
    scale = (gigabytes / 12.4) ** 0.5
    width = max(1, round(WIDTH * scale / 128)) * 128
    sizes = {"inner": round(INNER * scale / 8) * 8 or 8, "vocabulary": round(VOCABULARY * scale / 8) * 8 or 8}
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    full = 0
    for name, shape in shapes(width, **sizes).items():
        nbytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if full and full + nbytes > shard_gigabytes * 1e9:
            groups.append({})
            full = 0
        groups[-1][name], full = shape, full + nbytes
    folder.mkdir(parents=True)
    weight_map, total = {}, 0
    for number, group in enumerate(groups, 1):
        file = folder / f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in group.items():
            begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with file.open("wb") as writer:
            writer.write(len(encoded).to_bytes(8, "little") + encoded)
            for left in range(end, 0, -(16 << 20)):
                writer.write(os.urandom(min(left, 16 << 20)))
            writer.flush()
            os.fsync(writer.fileno())
        weight_map |= dict.fromkeys(group, file.name)
        total += end
    metadata = {"total_parameters": total // 2, "total_size": total}
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"},
        **{"hidden_size": width, "intermediate_size": sizes["inner"], "vocab_size": sizes["vocabulary"]},
        **{"num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS},
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def run(*command: object) -> tuple[float, int]:
    """Seconds and peak of resident memory in bytes."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def tensors(folder: Path) -> dict[str, tuple[Path, dict, int]]:
    """Name -> file, entry of the header, and where the tensors of the file begin."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as reader:
            length = int.from_bytes(reader.read(8), "little")
            header = json.loads(reader.read(length))
        header.pop("__metadata__")
        found |= {name: (file, entry, 8 + length) for name, entry in header.items()}
    return found


def content(file: Path, entry: dict, start: int) -> bytes:
    begin, end = entry["data_offsets"]
    with file.open("rb") as reader:
        reader.seek(start + begin)
        return reader.read(end - begin)


def check(dense: Path, cut: Path, removed: set[int]) -> int:
    """Compare every tensor of a cut checkpoint with the dense one; returns their bytes."""
    kept = [block for block in range(BLOCKS) if block not in removed]
    before, after = tensors(dense), tensors(cut)
    expected = {}
    for name in before:
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) in removed:
                continue
            parts[2] = str(kept.index(int(parts[2])))
        expected[".".join(parts)] = name
    assert expected.keys() == after.keys()
    for new, old in expected.items():
        assert {**after[new][1], "data_offsets": 0} == {**before[old][1], "data_offsets": 0}, new
        assert content(*after[new]) == content(*before[old]), new
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for name, (file, _, _) in after.items()}
    total = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for _, entry, _ in after.values())
    assert index["metadata"] == {"total_parameters": total // 2, "total_size": total}
    return total


def hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def kill(folder: Path, blocks: tuple[str, ...], count: int) -> dict:
    """SIGKILL at random moments of the command: there is no output or a whole one, and the source is as it was.

    The processes are forked from this one, which has imported everything.
    """
    from transformers import LlamaForCausalLM  # noqa: F401

    from streamliner.cli import main as streamliner
    from streamliner.verbs.cut import cut_to_disk  # noqa: F401

    def start(out: str, *more: str) -> int:
        process = os.fork()
        if not process:
            code = 1
            try:
                streamliner(["cut", str(folder / "dense"), *blocks, "-o", str(folder / out), *more])
            except SystemExit as stop:
                code = stop.code or 0
            finally:
                os._exit(code)
        return process

    def finish(process: int) -> float:
        begin = time.perf_counter()
        assert os.waitpid(process, 0)[1] == 0
        return time.perf_counter() - begin

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the paths that the command prints
    finish(start("warm-up"))
    longest = finish(start("expected"))
    source, expected, found = (
        hashes(folder / "dense"),
        hashes(folder / "expected"),
        {"killed": 0, "whole": 0, "partial": 0},
    )
    generator = random.Random(0)
    for number in range(count):
        process = start("out", *["--link"] * (number % 2))
        time.sleep(generator.random() * longest * (0.5 if number % 2 else 1.1))
        os.kill(process, signal.SIGKILL)
        killed = os.waitpid(process, 0)[1] == signal.SIGKILL
        found["killed"] += killed
        found["partial"] += any(folder.glob(".out.partial-*/*.safetensors"))
        assert hashes(folder / "dense") == source
        if (folder / "out").exists():
            found["whole"] += 1
            mark = "streamliner.json"  # has what `--link` did
            assert {**hashes(folder / "out"), mark: ""} == {**expected, mark: ""}
            shutil.rmtree(folder / "out")
        print(number, "killed" if killed else "ended before", found, file=sys.stderr, flush=True)
    finish(start("out"))
    assert hashes(folder / "out") == expected
    assert sorted(path.name for path in folder.iterdir()) == ["dense", "expected", "out", "tiny", "warm-up"]
    return found | {"seconds": round(longest, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=12.4)
    parser.add_argument("--shard-gigabytes", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=20, help="first block to remove")
    parser.add_argument("--count", type=int, default=8, help="blocks to remove")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="compare every tensor")
    parser.add_argument("--kill", type=int, default=0, help="moments to kill it at")
    asked = parser.parse_args()
    folder, removed = asked.folder, set(range(asked.first, asked.first + asked.count))
    if folder.exists():
        raise SystemExit(f"{folder} exists.")
    blocks = ("--blocks", f"{asked.first}-{asked.first + asked.count - 1}", "--no-verify", "-q")

    def cut(model: str, out: str, *more: str) -> tuple[float, int]:
        return run(sys.executable, "-m", "streamliner", "cut", folder / model, *blocks, "-o", folder / out, *more)

    try:
        make(folder / "dense", asked.gigabytes, asked.shard_gigabytes)
        make(folder / "tiny", 0.001, asked.shard_gigabytes)
        if asked.kill:
            print(json.dumps(kill(folder, blocks, asked.kill)), file=sys.stderr)
            return
        cut("tiny", "warm-up")
        cut("dense", "cut")
        result: dict = {"dense_bytes": sum(file.stat().st_size for file in (folder / "dense").iterdir())}
        result["kept_bytes"] = sum(file.stat().st_size for file in (folder / "cut").iterdir())
        if asked.check:
            cut("dense", "linked", "--link")
            result["bytes_compared"] = [check(folder / "dense", folder / out, removed) for out in ("cut", "linked")]
            shutil.rmtree(folder / "linked")
        seconds: dict[str, list[float]] = {name: [] for name in ("cp", "cut", "link", "start")}
        peaks = dict.fromkeys(seconds, 0)
        for number in range(asked.rounds):
            order = ["cp", "cut", "link", "start"]
            for name in order[number % 4 :] + order[: number % 4]:
                for used in ("dense", "cut"):
                    forget(folder / used)
                os.sync()
                if name == "cp":
                    copy = 'cp -r --reflink=never "$0" "$1" && sync "$1"/* "$1"'
                    took, peak = run("sh", "-c", copy, folder / "cut", folder / "new")
                else:
                    more = ("--link",) if name == "link" else ()
                    took, peak = cut("tiny" if name == "start" else "dense", "new", *more)
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak)
                shutil.rmtree(folder / "new")
                print(f"{name} {took:.1f} s, {peak / 1e6:.0f} MB", flush=True)
        for name in ("cut", "link"):
            ratios = [ours / cp for ours, cp in zip(seconds[name], seconds["cp"], strict=True)]
            result[f"{name}_ratio"] = [round(each, 2) for each in (statistics.median(ratios), min(ratios), max(ratios))]
        result |= {"seconds": {name: [round(each, 1) for each in times] for name, times in seconds.items()}}
        print(json.dumps(result | {"peak_bytes": peaks}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
