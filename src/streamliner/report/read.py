"""Run folders and result files -> what they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError
from streamliner.runs.files import SCHEMA_VERSIONS

FILES = ("run.json", "frontier.json", "plan.json", "similarity.json", "healing.json", "result.json")


RESULTS = ("evaluation.json", "benchmark.json")


@dataclass(frozen=True)
class Run:
    """A run folder: its name, what its files hold by their name without .json, and the losses of a training."""

    name: str
    files: dict[str, Any]
    history: list[dict[str, Any]]


def read_runs(names: Sequence[str]) -> tuple[list[Run], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run folders, with what lies in their `healing`; evaluations and benchmarks, in folders or named themselves.

    Raises:
        OutputError: there is no such folder or file, or nothing in it that a report could show.
    """
    runs: list[Run] = []
    results: list[dict[str, Any]] = []
    for path in dict.fromkeys(Path(name).expanduser() for name in names):
        if not path.exists():
            raise OutputError(f"There is no {path}.", "Give run folders, and JSON files of evaluate and benchmark.")
        if path.is_file():
            results.append(_result(path))
            continue
        before = len(runs) + len(results)
        for folder in (path, path / "healing"):
            files = {file.removesuffix(".json"): _read(folder / file) for file in FILES if (folder / file).is_file()}
            history = folder / "history.jsonl"
            rows = _history(history) if history.is_file() else []
            if files:
                runs.append(Run(str(folder), files, rows))
            results += [_result(folder / file) for file in RESULTS if (folder / file).is_file()]
        if len(runs) + len(results) == before:
            raise OutputError(
                f"There is no run in {path}.", "Give folders that search, prune or heal wrote, or their JSON files."
            )
    evaluations = [value for value in results if not is_benchmark(value)]
    return runs, evaluations, [value for value in results if is_benchmark(value)]


def is_benchmark(value: dict[str, Any]) -> bool:
    """Whether a result is one of `benchmark`, and not of `evaluate`."""
    return "device" in value


def _history(path: Path) -> list[dict[str, Any]]:
    """The rows of a training; a last line that is being written, or was cut short by a kill, is left out."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _result(path: Path) -> dict[str, Any]:
    """Of `evaluate` or `benchmark`."""
    value = _read(path)
    if not (isinstance(value, dict) and {"models", "compared", "schema_version"} <= value.keys()):
        raise OutputError(
            f"{path} is not a result of evaluate or benchmark.", "Of a run, give the folder and not a file in it."
        )
    known = SCHEMA_VERSIONS["benchmark" if is_benchmark(value) else "evaluation"]
    if value["schema_version"] != known:
        raise OutputError(
            f"{path} has schema_version {value['schema_version']!r}; this release reads {known}.",
            "Measure again; what evaluate measured is still in its cache.",
        )
    return value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutputError(
            f"{path} cannot be read as JSON: {error}", "Give run folders, and JSON files of evaluate and benchmark."
        ) from error
