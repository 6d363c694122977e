"""What can be measured of a model with blocks removed."""

from streamliner.measure.loss import Loss
from streamliner.measure.probe import Counters, Probe
from streamliner.measure.similarity import Similarity

__all__ = ["Counters", "Loss", "Probe", "Similarity"]
