"""Depth pruning of large language models. See `streamliner --help` or the README.

Importing this package imports nothing heavy; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from streamliner._version import __version__

if TYPE_CHECKING:
    from streamliner.blocks import Blocks as Blocks
    from streamliner.calibration import CalibrationSet as CalibrationSet
    from streamliner.calibration import make_calibration_set as make_calibration_set
    from streamliner.measure import Loss as Loss
    from streamliner.measure import Probe as Probe
    from streamliner.search import Frontier as Frontier
    from streamliner.search import Plan as Plan

_HOMES = {
    "Blocks": "blocks",
    "CalibrationSet": "calibration",
    "Frontier": "search",
    "Loss": "measure",
    "Plan": "search",
    "Probe": "measure",
    "cut_checkpoint": "cut",
    "cut_model": "cut",
    "load_model": "models",
    "load_tokenizer": "models",
    "locate": "models",
    "make_calibration_set": "calibration",
    "make_method": "search",
    "make_plan": "search",
    "read_plan": "search",
    "verify": "cut",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"streamliner.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'streamliner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
