"""`streamliner doctor`: what this machine and this installation can do, and what is wrong with them."""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from streamliner.errors import install_command
from streamliner.format import counted
from streamliner.model.devices import best_device, free_and_total, product_seconds
from streamliner.model.threads import available_threads, best_number, thread_rates, threads
from streamliner.runs.cache import cache_folder
from streamliner.runs.folder import environment
from streamliner.verbs.methods import methods

EXTRAS = {
    "gguf": "read models in GGUF files",
    "hub": "texts from the hub, Parquet files",
    "heal": "LoRA: heal --lora",
    "tasks": "tasks of lm-eval: evaluate --tasks",
    "llama-cpp": "benchmark --engine llama.cpp",
    "track": "TensorBoard: heal --track tensorboard",
    "plot": "plots in a notebook",
}
"""The extras for users, and what each gives."""


def doctor() -> dict[str, Any]:
    """Versions, devices, extras, disks, threads and precisions, as a JSON value; takes a few seconds.

    Rates of threads are small pieces of a block a second, seconds of precisions those of a matrix product. `problems`
    are sentences about what will not work.
    """
    found, others = environment(), [each for each in methods() if not each["package"].startswith("streamliner ")]
    needed, extras = _requirements()
    missing = [each for each in needed if not each["fits"]]
    rates = thread_rates(available_threads())
    best, devices = best_number(rates), _devices()
    with threads(best):
        precisions = [_precision(torch.device(each["device"])) for each in devices if each["fastest"]]
    problems = [f"{each['name']} is {each['installed'] or 'missing'}; {each['needed']} is needed." for each in missing]
    problems += [each["error"] for each in others if "error" in each]
    advice = thread_advice(rates, torch.get_num_threads())
    return {
        "versions": found["versions"],
        "machine": found["hardware"],
        "devices": devices,
        "dependencies": needed,
        "extras": extras,
        "plugins": others,
        "disks": [_disk(use, path) for use, path in _places().items()],
        "threads": {"used": torch.get_num_threads(), "best": best, "rates": rates},
        "precisions": precisions,
        "problems": problems,
        "advice": [advice] if advice else [],
    }


def _requirements() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What streamliner needs, and its extras with what they give."""
    try:
        every = [Requirement(line) for line in requires("streamliner") or ()]
    except PackageNotFoundError:  # run from its source, without an installation
        return [], []
    needed = [_state(each) for each in every if each.marker is None or each.marker.evaluate({"extra": ""})]
    extras = []
    for name, gives in EXTRAS.items():
        parts = [_state(each) for each in every if each.marker is not None and each.marker.evaluate({"extra": name})]
        parts = [each for each in parts if each not in needed]
        fits = all(each["fits"] for each in parts)
        command = install_command(name)
        extras.append({"name": name, "gives": gives, "installed": fits, "command": command, "packages": parts})
    return needed, extras


def _state(requirement: Requirement) -> dict[str, Any]:
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        installed = None
    fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
    needed = f"{requirement.name}{requirement.specifier}"
    return {"name": requirement.name, "installed": installed, "needed": needed, "fits": fits}


def _devices() -> list[dict[str, Any]]:
    """The CPU and the GPUs with their memory; the fastest is the one that models go to."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    result = []
    for name in names:
        device = torch.device(name)
        free, total = free_and_total(device) or (None, None)
        fastest = device.type == best_device().type and not device.index
        result.append({"device": name, "free_bytes": free, "total_bytes": total, "fastest": fastest})
    return result


def _places() -> dict[str, Path]:
    return {
        "current folder": Path.cwd(),
        "models from the hub": Path(constants.HF_HUB_CACHE),
        "results of evaluate": cache_folder(),
        "temporary files": Path(tempfile.gettempdir()),
    }


def _disk(use: str, path: Path) -> dict[str, Any]:
    """The free space where a folder is, or where it will be made."""
    there = next(each for each in (path, *path.parents) if each.exists())
    return {"use": use, "path": str(path), "free_bytes": shutil.disk_usage(there).free}


def _precision(device: torch.device) -> dict[str, Any]:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        try:
            seconds[str(dtype).removeprefix("torch.")] = product_seconds(dtype, device)
        except RuntimeError:  # the device does not have it
            continue
    return {"device": str(device), "seconds": seconds, "fastest": min(seconds, key=seconds.__getitem__)}


def thread_advice(rates: dict[int, float], used: int) -> str:
    """What to set if torch uses a number of threads that is much slower than the best one."""
    best = best_number(rates)
    nearest = max(number for number in rates if number <= used)
    if rates[best] < 1.5 * rates[nearest]:
        return ""
    now = os.environ.get("OMP_NUM_THREADS")
    why = "other programs run too" if now is None else f"it is {now} now"
    ratio = f"{rates[best] / rates[nearest]:.1f} times as fast as with {nearest}"
    return f"Set OMP_NUM_THREADS={best} ({why}): with {counted(best, 'thread')} this machine is {ratio}."
