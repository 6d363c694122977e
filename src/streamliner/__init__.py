"""Depth pruning of large language models. See `streamliner --help` or the README.

Importing this package imports nothing heavy; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from streamliner._version import __version__

if TYPE_CHECKING:
    from streamliner.measure.loss import Loss
    from streamliner.measure.probe import Probe
    from streamliner.model.blocks import Blocks
    from streamliner.search.frontier import Frontier
    from streamliner.search.plan import Plan
    from streamliner.text.windows import CalibrationSet, make_calibration_set

_HOMES = {
    "Blocks": "model.blocks",
    "CalibrationSet": "text.windows",
    "Frontier": "search.frontier",
    "Loss": "measure.loss",
    "Plan": "search.plan",
    "Probe": "measure.probe",
    "cut_checkpoint": "cut.checkpoint",
    "cut_model": "cut.memory",
    "load_model": "model.load",
    "load_tokenizer": "model.load",
    "locate": "model.source",
    "make_calibration_set": "text.windows",
    "make_method": "search.registry",
    "make_plan": "search.find",
    "read_plan": "search.plan",
    "verify": "cut.verify",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"streamliner.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'streamliner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
