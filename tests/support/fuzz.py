"""Broken files, made from right ones: each must be an error in a sentence, or be read; never a traceback, never a hang.

python tests/support/fuzz.py 100000        as many files, and prints what went wrong
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from streamliner.cut.structure import Structure
from streamliner.errors import StreamlinerError
from streamliner.model.gguf_header import read_header
from streamliner.model.load import load_model, load_tokenizer, silenced_transformers
from streamliner.model.session import open_model
from streamliner.model.source import check_safetensors_file
from streamliner.runs.journal import Journal
from streamliner.search.plan import read_plan

TINY = Path(__file__).parent.parent / "fixtures" / "tiny-llama"
VALUES = [None, True, False, -1, 0, 1, 3, 2**31, 10**12, 0.5, float("nan"), float("inf"), "", "x", "llama", [], [1], {}]
VALUES += [[None] * 12, {"a": 1}, {"0": 1}, "../../etc/passwd", "\ud800", [[[[]]]], "full_attention", 1e300]
PLAN = {
    "removed": [3, 7],
    "num_blocks": 12,
    "model": {"name": "m", "model_type": "llama", "hidden_size": 64, "vocab_size": 1024},
    "method": "sleb",
    "settings": {"metric": "iterative"},
    "order": [7, 3],
    "score": 1.0,
    "dense_loss": 0.9,
    "loss": 1.0,
    "calibration": {"source": "python-docs"},
    "schema_version": 1,
}
JOURNAL = [
    {"schema_version": 2, "identity": {"a": 1}},
    {"fork": ["", 1]},
    {"windows": [0, 1], "removed": [[], [3]], "losses": [[1.0, 2.0], [1.0, 2.0]]},
]


def mutated(value, rng: random.Random):
    """A JSON value with one or a few changes anywhere in it."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = _place(value, rng)
        if holder is None:
            return _value(rng)
        action = rng.random()
        if action < 0.6:
            holder[key] = _value(rng)
        elif action < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            name = rng.choice(("x", "layer_types", "quantization_config", "model_type", str(key) + "2"))
            holder[name] = _value(rng)
        else:
            holder.append(_value(rng))
    return value


def _value(rng):
    return copy.deepcopy(rng.choice(VALUES))


def _place(value, rng):
    holder, key = None, None
    while isinstance(value, (dict, list)) and value and (holder is None or rng.random() < 0.6):
        holder, key = value, rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = holder[key]
    return holder, key


def broken_text(value, rng: random.Random) -> bytes:
    """JSON of a changed value; now and then cut short or with other bytes in it."""
    text = json.dumps(mutated(value, rng)).encode("utf-8", "surrogatepass")
    return broken_bytes(text, rng) if rng.random() < 0.2 else text


def broken_bytes(data: bytes, rng: random.Random, within: int = 3000) -> bytes:
    """The bytes with a few others among the first, or cut short."""
    data = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
    for _ in range(rng.choice((1, 2, 8))):
        if data:
            data[rng.randrange(min(len(data), within))] = rng.randrange(256)
    return bytes(data)


class Fuzzer:
    """Writes a broken file of each kind into a folder and reads it."""

    def __init__(self, folder: Path, gguf: Path | None = None) -> None:
        self.model, self.other = folder / "model", folder / "other"
        shutil.copytree(TINY, self.model)
        self.other.mkdir()
        names = ("config.json", "tokenizer_config.json", "generation_config.json")
        self.contents = {name: json.loads((TINY / name).read_text()) for name in names}
        self.weights = (TINY / "model.safetensors").read_bytes()
        self.gguf = gguf.read_bytes()[:20_000] if gguf else None
        self.kinds = [self.config, self.tokenizer, self.generation, self.plan, self.journal, self.safetensors]
        self.kinds += [self.gguf_header] if self.gguf else []

    def config(self, rng):
        self._break("config.json", rng)
        Structure(open_model(str(self.model)).shell).refusal((3,))

    def tokenizer(self, rng):
        self._break("tokenizer_config.json", rng)
        load_tokenizer(str(self.model))

    def generation(self, rng):
        self._break("generation_config.json", rng)
        load_model(str(self.model))

    def _break(self, name, rng):
        """Break one file of the model; the others are right."""
        for each, content in self.contents.items():
            data = broken_text(content, rng) if each == name else json.dumps(content).encode()
            (self.model / each).write_bytes(data)

    def plan(self, rng):
        (self.other / "plan.json").write_bytes(broken_text(PLAN, rng))
        repr(read_plan(self.other / "plan.json"))

    def journal(self, rng):
        lines = [json.dumps(each) for each in JOURNAL]
        number = rng.randrange(len(lines))
        lines[number] = broken_text(JOURNAL[number], rng).decode("utf-8", "replace").replace("\n", " ")
        (self.other / "journal.jsonl").write_text("\n".join(lines) + "\n", "utf-8", "replace")
        Journal(self.other, {"a": 1})

    def safetensors(self, rng):
        path = self.other / "x.safetensors"
        path.write_bytes(broken_bytes(self.weights[:40_000], rng))
        check_safetensors_file(path)

    def gguf_header(self, rng):
        path = self.other / f"{rng.randrange(10**9)}.gguf"
        path.write_bytes(broken_bytes(self.gguf, rng))
        try:
            read_header(path)
        finally:
            path.unlink()

    def run(self, seed: int) -> str:
        """Try a file; returns what went wrong, "" if nothing did."""
        rng = random.Random(seed)
        kind = self.kinds[seed % len(self.kinds)]
        start = time.monotonic()
        try:
            with silenced_transformers():
                kind(rng)
        except StreamlinerError:
            pass
        except Exception as error:
            return f"{seed} {kind.__name__}: {type(error).__name__}: {error}"
        seconds = time.monotonic() - start
        return f"{seed} {kind.__name__}: took {seconds:.0f} s" if seconds > 20 else ""


def main() -> None:
    count, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(Path(__file__).parent))
        from gguf_files import write_gguf

        fuzzer = Fuzzer(Path(folder), write_gguf(TINY, Path(folder) / "m.gguf"))
        wrong = [found for seed in range(start, start + count) if (found := fuzzer.run(seed))]
    print("\n".join(wrong[:100]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count} files, {len(wrong)} wrong; peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
