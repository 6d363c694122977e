"""Depth pruning of large language models. See the README, or `streamliner --help`.

Importing this package imports nothing heavy; each name is loaded when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from streamliner._version import __version__ as __version__

if TYPE_CHECKING:
    from streamliner.api import (
        benchmark as benchmark,
        evaluate as evaluate,
        heal as heal,
        recipe as recipe,
        search as search,
    )
    from streamliner.benchmark.result import Benchmark as Benchmark
    from streamliner.cut.faults import Checkup as Checkup, Fault as Fault
    from streamliner.cut.verification import Verification as Verification
    from streamliner.evaluate.evaluation import Evaluation as Evaluation
    from streamliner.measure.loss import Loss as Loss
    from streamliner.measure.probe import Probe as Probe
    from streamliner.model.blocks import Blocks as Blocks
    from streamliner.model.load import load_model as load_model, load_tokenizer as load_tokenizer
    from streamliner.search.found import Found as Found
    from streamliner.search.frontier import Frontier as Frontier, Point as Point
    from streamliner.search.plan import Plan as Plan, read_plan as read_plan
    from streamliner.text.calibration import CalibrationSet as CalibrationSet
    from streamliner.text.windows import calibration_set as calibration_set
    from streamliner.verbs.cut import cut as cut
    from streamliner.verbs.verify import find_faults as find_faults, mend as mend, verify as verify

_NAMES = {
    "api": "benchmark evaluate heal recipe search",
    "benchmark.result": "Benchmark",
    "cut.faults": "Checkup Fault",
    "cut.verification": "Verification",
    "evaluate.evaluation": "Evaluation",
    "measure.loss": "Loss",
    "measure.probe": "Probe",
    "model.blocks": "Blocks",
    "model.load": "load_model load_tokenizer",
    "search.found": "Found",
    "search.frontier": "Frontier Point",
    "search.plan": "Plan read_plan",
    "text.calibration": "CalibrationSet",
    "text.windows": "calibration_set",
    "verbs.cut": "cut",
    "verbs.verify": "find_faults mend verify",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"streamliner.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'streamliner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package, in which `search` is the function, and not the folder `search/` once something imported that."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
