"""How fast models are, in the engine that is to serve them."""

from streamliner.benchmark.engine import ENGINES, Engine
from streamliner.benchmark.run import benchmark_models
from streamliner.benchmark.settings import BenchmarkSettings

__all__ = ["ENGINES", "BenchmarkSettings", "Engine", "benchmark_models"]
