"""Read run folders and the JSON files of `evaluate` and `benchmark`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError
from streamliner.runs.files import SCHEMA_VERSIONS, read_json_lines

JsonObject = dict[str, Any]
RUN_FILES = ("run.json", "frontier.json", "plan.json", "similarity.json", "healing.json", "result.json")
RESULT_FILES = ("evaluation.json", "benchmark.json")
SOURCES_HINT = "Give run folders, and JSON files written by evaluate and benchmark."


@dataclass(frozen=True)
class Run:
    """A run folder: its path, its JSON files by name without the suffix, and the losses of a training by step."""

    name: str
    files: JsonObject
    history: list[JsonObject]

    @property
    def search_name(self) -> str:
        """The search method, with the name of the folder if that is not the same."""
        method = self.files.get("frontier", self.files["run"]["search"])["method"]
        return str(method) if Path(self.name).name == method else f"{method} ({Path(self.name).name})"


@dataclass(frozen=True)
class Results:
    """Everything that a report shows."""

    runs: list[Run] = field(default_factory=list)
    evaluations: list[JsonObject] = field(default_factory=list)
    benchmarks: list[JsonObject] = field(default_factory=list)

    @property
    def searches(self) -> list[Run]:
        """The runs that searched, finished or not."""
        return [run for run in self.runs if "search" in run.files.get("run", {})]


def read_results(sources: Sequence[str]) -> Results:
    """Read run folders, with the `healing` folders in them, and result files, in folders or named directly.

    Raises:
        OutputError: a source does not exist, is not readable, or contains nothing that a report could show.
    """
    results = Results()
    for path in dict.fromkeys(Path(source).expanduser() for source in sources):
        if not path.exists():
            raise OutputError(f"{path} does not exist.", SOURCES_HINT)
        folders = (path, path / "healing")
        runs = [run for folder in folders if (run := _read_run(folder)).files]
        inside = (folder / name for folder in folders for name in RESULT_FILES)
        files = [file for file in (path, *inside) if file.is_file()]
        if not runs and not files:
            raise OutputError(
                f"There is no run in {path}.", "Give folders that search, prune or heal wrote, or their JSON files."
            )
        results.runs.extend(runs)
        for file in files:
            kind, value = _read_result(file)
            (results.benchmarks if kind == "benchmark" else results.evaluations).append(value)
    return results


def _read_run(folder: Path) -> Run:
    files = {name.removesuffix(".json"): _read_json(folder / name) for name in RUN_FILES if (folder / name).is_file()}
    return Run(str(folder), files, read_json_lines(folder / "history.jsonl"))


def _read_result(path: Path) -> tuple[str, JsonObject]:
    """Which verb wrote a result, and the result."""
    value = _read_json(path)
    if not (isinstance(value, dict) and {"models", "compared", "schema_version"} <= value.keys()):
        raise OutputError(
            f"{path} is not a result of evaluate or benchmark.", "For a run, give its folder, not a file."
        )
    kind = "benchmark" if "device" in value else "evaluation"
    if value["schema_version"] != SCHEMA_VERSIONS[kind]:
        raise OutputError(
            f"{path} has schema_version {value['schema_version']!r}; this release reads {SCHEMA_VERSIONS[kind]}.",
            "Run the command again; evaluate reuses the measurements in its cache.",
        )
    return kind, value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutputError(f"{path} cannot be read as JSON: {error}", SOURCES_HINT) from error
