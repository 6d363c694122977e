"""Healing: train what takes the place of removed blocks (LLM-Streamline, arXiv 2403.19135), or adapters."""

from streamliner.heal.gaps import Gap, find_gaps
from streamliner.heal.mixture import Mixture
from streamliner.heal.objective import Objective, make_objective
from streamliner.heal.settings import HealSettings
from streamliner.heal.train import Trained, count_steps, make_accelerator, train

__all__ = [
    "Gap",
    "HealSettings",
    "Mixture",
    "Objective",
    "Trained",
    "count_steps",
    "find_gaps",
    "make_accelerator",
    "make_objective",
    "train",
]
