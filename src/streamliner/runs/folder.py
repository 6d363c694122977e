"""The run folder: whose run it is, and the environment that `run.json` records."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from streamliner._version import __version__
from streamliner.errors import OutputError
from streamliner.plugins import KINDS, plugins

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "accelerate", "safetensors", "peft", "datasets", "gguf"),
    *("lm_eval", "vllm", "xllamacpp"),
)

NO_COMMAND = ("ipykernel_launcher.py", "-c", "")
"""What is called the program in a notebook, in `python -c` and in an interpreter: it cannot be typed again."""

ADDED = ("config", "attention", "device", "releases", "window_shape")
"""Parts of a run's identity that earlier releases did not record."""

DEFAULTS = {"objective": "loss"}
"""Parts of a search's identity that came later, and what they were before there was a choice."""
OF_ADAPTIVE = ("slack", "z")
"""Settings of `sleb` that do nothing where its effort is exact."""


def check_run_folder(folder: str | Path, mark: str = "journal.jsonl") -> Path:
    """Check that `folder` is new, empty, or a run folder, which holds the file `mark`; an OutputError if not."""
    path = Path(folder).expanduser().absolute()
    found = [each for each in path.iterdir() if not each.name.startswith(".")] if path.is_dir() else []
    if path.exists() and (not path.is_dir() or (found and not (path / mark).exists())):
        raise OutputError(f"{folder} exists and is not a run folder.", "Choose another name.")
    return path


def run_precision(folder: Path) -> str | None:
    """The `dtype` that the search in a run folder was made with; None if there is no search in it."""
    try:
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["model"]["dtype"])
    except (OSError, ValueError, KeyError):
        return None


def run_windows(folder: Path) -> int | None:
    """The number of windows of the search in a run folder; None if there is no search in it."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return int(found["identity"]["window_shape"][0])
    except (OSError, ValueError, KeyError):
        return None


RESULTS = ("plan.json", "frontier.json", "similarity.json", "targets.json", "plans", "steps")
"""What the run folder of a search has besides its journal and settings."""


def forget_results(folder: Path) -> None:
    """Remove what an earlier search left in a run folder, as another one begins there."""
    for name in RESULTS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def asked_windows(folder: Path) -> tuple[int, int] | None:
    """The number of windows that the search in a run folder asked for, and their tokens; None without a search."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return int(found["search"]["num_samples"]), int(found["identity"]["window_shape"][1])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_same_run(folder: Path, found: Any, wanted: Any) -> None:
    """Check that the run in `folder` is the wanted one; an OutputError that names the first difference if not."""
    if difference := run_difference(found, wanted):
        if difference.startswith("calibration "):
            difference = "its calibration text or --seed differed (python-docs changes with Python)"
        raise OutputError(
            f"The run folder {folder} is of another run: {difference}.",
            "Choose another folder, or add --overwrite to start it again from the beginning.",
        )


def run_difference(found: Any, wanted: Any) -> str:
    """The first difference between the identities of two runs, "" if they are the same run.

    The model's name does not count, because a folder may be moved or reached by another path; its weights do. Earlier
    releases wrote the names of methods with underscores, and nothing of ADDED or DEFAULTS.
    """
    here, there = _comparable(json.loads(json.dumps(wanted))), _comparable(found)
    if is_of_earlier_release(found):
        part = here.get("identity", here)
        for key in ADDED:
            part.pop(key, None)
    part = there.get("identity", there) if isinstance(there, dict) else {}
    for key in DEFAULTS.keys() & here.get("identity", here).keys():
        part.setdefault(key, DEFAULTS[key])
    return _first_difference(there, here)


def is_of_earlier_release(found: Any) -> bool:
    """Whether the identity of a run has nothing of ADDED."""
    part = found.get("identity", found) if isinstance(found, dict) else {}
    return isinstance(part, dict) and bool(part) and not set(ADDED) & part.keys()


def environment() -> dict[str, Any]:
    """Command, versions and hardware, for `run.json`."""
    import torch

    versions = {"streamliner": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    versions |= {plugin.distribution: plugin.version for kind in KINDS.values() for plugin in plugins(kind)}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    program = Path(sys.argv[0]).name  # without this machine's folders
    command = ["streamliner" if program == "__main__.py" else program, *sys.argv[1:]]
    return {
        "command": [] if program in NO_COMMAND else command,
        "versions": versions,
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }


def _processor() -> str:
    """The name of the processor, which `platform` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _comparable(value: Any, where: str = "") -> Any:
    if isinstance(value, dict):
        if where == "method_settings" and value.get("effort") == "exact":
            value = {key: item for key, item in value.items() if key not in OF_ADAPTIVE}
        return {key: _comparable(item, key) for key, item in value.items() if (where, key) != ("model", "name")}
    if where != "method" or not isinstance(value, str):
        return value
    file, is_file, name = value.rpartition(".py:")  # a file of the user's may be moved
    return f"{Path(file).name}{is_file}{name}" if is_file else value.replace("_", "-")


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        differences = (
            _first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            for key in sorted(set(old) | set(new))
        )
        return next(filter(None, differences), "")
    return "" if old == new else f"{where.removeprefix('identity.')} was {old!r} there and is {new!r} now"
