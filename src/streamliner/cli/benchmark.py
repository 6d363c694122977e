"""`streamliner benchmark`."""

from streamliner.cli.command import MODELS, Given, command
from streamliner.cli.console import print_tables
from streamliner.format import counted
from streamliner.settings import BenchmarkSettings, ModelSettings


@command(
    MODELS,
    examples=("benchmark small --dense Qwen/Qwen3-0.6B", "benchmark small.gguf --dense big.gguf --engine llama.cpp"),
    without=("offload",),
    Benchmark=BenchmarkSettings,
    Model=ModelSettings,
)
def benchmark(given: Given) -> None:
    """Measure the speed of prompts and generation, and show the speed-up that the removed blocks should give.

    After the first round, Ctrl-C keeps what was measured.
    """
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.benchmark import benchmark as run_benchmark

    check_alone("benchmark")
    settings = given.settings(BenchmarkSettings)
    result = run_benchmark(given.argument(MODELS), settings, given.settings(ModelSettings))
    given.show(result.to_json(), settings.output, lambda: print_tables(result.tables()))
    if result.stopped:
        given.stopped(f"Stopped after {counted(result.workload.repeats, 'round')}.", settings.output)
