"""Depth pruning of large language models. See the README, or `streamliner --help`.

Importing this package imports nothing heavy; each name is loaded when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from streamliner._version import __version__ as __version__

if TYPE_CHECKING:
    from streamliner.api import benchmark as benchmark
    from streamliner.api import evaluate as evaluate
    from streamliner.api import heal as heal
    from streamliner.api import search as search
    from streamliner.benchmark.result import Benchmark as Benchmark
    from streamliner.cut.verification import Verification as Verification
    from streamliner.evaluate.evaluation import Evaluation as Evaluation
    from streamliner.measure.loss import Loss as Loss
    from streamliner.measure.probe import Probe as Probe
    from streamliner.model.blocks import Blocks as Blocks
    from streamliner.model.load import load_model as load_model
    from streamliner.model.load import load_tokenizer as load_tokenizer
    from streamliner.search.found import Found as Found
    from streamliner.search.frontier import Frontier as Frontier
    from streamliner.search.frontier import Point as Point
    from streamliner.search.plan import Plan as Plan
    from streamliner.search.plan import read_plan as read_plan
    from streamliner.text.calibration import CalibrationSet as CalibrationSet
    from streamliner.text.windows import calibration_set as calibration_set
    from streamliner.verbs.cut import cut as cut
    from streamliner.verbs.verify import verify as verify

_HOMES = {
    "Benchmark": "benchmark.result",
    "Blocks": "model.blocks",
    "CalibrationSet": "text.calibration",
    "Evaluation": "evaluate.evaluation",
    "Found": "search.found",
    "Frontier": "search.frontier",
    "Loss": "measure.loss",
    "Plan": "search.plan",
    "Point": "search.frontier",
    "Probe": "measure.probe",
    "Verification": "cut.verification",
    "benchmark": "api",
    "calibration_set": "text.windows",
    "cut": "verbs.cut",
    "evaluate": "api",
    "heal": "api",
    "load_model": "model.load",
    "load_tokenizer": "model.load",
    "read_plan": "search.plan",
    "search": "api",
    "verify": "verbs.verify",
}
_RENAMED = {
    "cut_checkpoint": "the command line: streamliner cut",
    "cut_model": "streamliner.cut",
    "locate": "the name itself: load_model(name)",
    "make_calibration_set": "streamliner.calibration_set",
    "make_method": "streamliner.search(model, text, method=...)",
    "make_plan": "Found.plan",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"streamliner.{_HOMES[name]}"), name)
    instead = f"; use {_RENAMED[name]}" if name in _RENAMED else ""
    raise AttributeError(f"module 'streamliner' has no attribute {name!r}{instead}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package, in which `search` is the function, and not the folder `search/` once something imported that."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
