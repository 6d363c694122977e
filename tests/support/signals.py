"""Signals at random moments of every verb, and what is there afterwards.

python tests/support/signals.py 40 [SEED]        as many signals, and prints what went wrong

A stopped command must end with status 130 or by the signal, without a traceback, with no output half written; the same
command must then give the bytes of a run that nobody stopped (of `benchmark`, whose figures are times, the same keys).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from places import TINY

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SEARCH = ("--remove", "2", "--num-samples", "6", "--sequence-length", "64")
HEAL = ("--steps", "30", "--global-batch-size", "2", "--validation-windows", "2", "--validations", "2")
PERPLEXITY = ("--perplexity", "python-docs", "--num-samples", "4", "--sequence-length", "64", "--samples", "1")
TIMING = ("--prompt-tokens", "16", "--context-tokens", "8", "--new-tokens", "4", "--repeats", "2")


def commands(cut: Path) -> dict[str, tuple]:
    """The arguments of each verb, whose output is `out` in the current folder."""
    return {
        "search": ("search", TINY, *SEARCH, "-o", "out"),
        "prune": ("prune", TINY, *SEARCH, "-o", "out"),
        "prune --heal": ("prune", TINY, *SEARCH, "--heal", *HEAL, "-o", "out"),
        "heal": ("heal", cut, *HEAL, "--sequence-length", "64", "-o", "out"),
        "evaluate": ("evaluate", TINY, cut, *PERPLEXITY, "-o", "out"),
        "benchmark": ("benchmark", TINY, cut, *TIMING, "-o", "out"),
        "cut": ("cut", TINY, "--blocks", "3,7", "-o", "out"),
    }


class Command:
    """`streamliner` in a folder of its own, with a cache of its own."""

    def __init__(self, arguments: tuple, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        folder.mkdir()

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "streamliner", *map(str, self.arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["XDG_CACHE_HOME"] = str(self.folder / "cache")
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **pipes)

    def finish(self) -> float:
        """Run to the end; the seconds it took."""
        start = time.monotonic()
        process = self.start()
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        return time.monotonic() - start

    def result(self) -> dict[str, object]:
        """What it wrote, by name: bytes, or the keys of a benchmark."""
        out = self.folder / "out"
        files = [file for file in out.rglob("*") if file.is_file()] if out.is_dir() else [out]
        if self.arguments[0] == "benchmark":
            return {"out": _keys(json.loads(out.read_text()))}
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in sorted(files)}


def disturb(command: Command, seconds: float, how: signal.Signals, expected: dict[str, object]) -> list[str]:
    """Send a signal after some seconds, run again, and say what was not as it must be."""
    process = command.start()
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        _, err = process.communicate(timeout=120)
    wrong = []
    if process.returncode not in (0, 130, -how):
        wrong.append(f"exit status {process.returncode}")
    if "Traceback" in err or (process.returncode == 130 and err.count("Stopped.") > 1):
        wrong.append(err[-2000:])
    names = {path.name for path in command.folder.iterdir()}
    if process.returncode != 0 and how is not signal.SIGKILL and (left := names - {"out.run", "cache", "out"}):
        wrong.append(f"left {sorted(left)}")
    if command.arguments[0] == "search" or "out" not in names:  # an output that is there must be whole already
        command.finish()
    elif command.arguments[0] == "benchmark":  # it may be of fewer rounds
        command.arguments += ("--overwrite",)
        command.finish()
    return wrong + _differences(command.result(), expected)


def _differences(result: dict[str, object], expected: dict[str, object]) -> list[str]:
    names = sorted(result.keys() | expected.keys())
    return [f"{name} differs" for name in names if result.get(name) != expected.get(name)]


def _keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: _keys(each) for key, each in value.items()}
    return [_keys(each) for each in value[:1]] if isinstance(value, list) else type(value).__name__


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    rng = random.Random(seed)
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Command(("cut", TINY, "--blocks", "4,5", "-o", "out"), folder / "cut").finish()
        undisturbed = {}
        for verb, arguments in commands(folder / "cut" / "out").items():
            reference = Command(arguments, folder / "reference")
            undisturbed[verb] = arguments, reference.finish(), reference.result()
            shutil.rmtree(reference.folder)
        for number in range(count):
            verb = list(undisturbed)[number % len(undisturbed)]
            arguments, duration, expected = undisturbed[verb]
            how, seconds = rng.choice(SIGNALS), rng.uniform(0, duration)
            command = Command(arguments, folder / "disturbed")
            wrong = disturb(command, seconds, how, expected)
            shutil.rmtree(command.folder)
            failures += bool(wrong)
            print(
                f"{verb}: {how.name} after {seconds:.1f} of {duration:.1f} s:", "; ".join(wrong) or "right", flush=True
            )
    print(f"{count} signals, {failures} wrong")


if __name__ == "__main__":
    main()
