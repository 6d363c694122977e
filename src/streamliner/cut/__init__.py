"""Applying a plan: to a config, to a model in memory, to a checkpoint on disk; and proving that it is right."""

from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.config import cut_config
from streamliner.cut.model import cut_model
from streamliner.cut.output import output_folder
from streamliner.cut.structure import Structure
from streamliner.cut.verify import Expectation, Verification, expect, verify

__all__ = [
    "Expectation",
    "Structure",
    "Verification",
    "cut_checkpoint",
    "cut_config",
    "cut_model",
    "expect",
    "output_folder",
    "verify",
]
