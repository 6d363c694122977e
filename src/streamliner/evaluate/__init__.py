"""What a model is worth: perplexity, tasks, and how far a cut model still answers as the dense one did."""

from streamliner.evaluate.run import EvaluationSettings, evaluate_models
from streamliner.evaluate.stability import Answer, Flips, flips, stability

__all__ = ["Answer", "EvaluationSettings", "Flips", "evaluate_models", "flips", "stability"]
