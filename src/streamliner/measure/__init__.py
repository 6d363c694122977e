"""What can be measured of a model with blocks removed."""

from streamliner.measure.loss import Loss
from streamliner.measure.probe import MEMORY_BUDGET, Counters, Probe
from streamliner.measure.similarity import Similarity

__all__ = ["MEMORY_BUDGET", "Counters", "Loss", "Probe", "Similarity"]
