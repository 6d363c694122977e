"""`streamliner benchmark`: time models in turn, and compare them with the dense one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from streamliner.benchmark.choose_engine import load_engines
from streamliner.benchmark.result import Benchmark, ModelSpeed, compare_speed
from streamliner.benchmark.timing import time_models
from streamliner.benchmark.workload import random_texts
from streamliner.model.devices import enough_memory
from streamliner.model.session import Session, open_models
from streamliner.runs.files import write_json
from streamliner.runs.folder import environment
from streamliner.runs.outputs import check_result_file
from streamliner.runs.reporter import Reporter
from streamliner.settings import BenchmarkSettings, ModelSettings
from streamliner.types import ModelLike


def benchmark(
    models: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
    settings: BenchmarkSettings,
    model_settings: ModelSettings | None = None,
) -> Benchmark:
    """Measure the speed of prompts and generation, the models in turn, and compare them with the dense one.

    Args:
        models: names of models or models in memory; a mapping names them in the results. All must fit in memory.
        settings: the engine and what to time; `dense` is the model to compare the others with.
        model_settings: how to load models that are named.

    Returns:
        Tokens per second, memory and speed-ups; a table in a notebook.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.
    """
    check_result_file(settings.output, overwrite=settings.overwrite)
    sessions = open_models(models, settings.dense, None, model_settings)
    return benchmark_models(sessions, settings, Reporter(settings.quiet))


def benchmark_models(sessions: Sequence[Session], settings: BenchmarkSettings, reporter: Reporter) -> Benchmark:
    """Time open models; with `settings.dense`, that is the first of them.

    Ctrl-C after the first round that counts ends it: the result then has fewer `repeats`, and `stopped` is true.

    Raises:
        Interrupted: by Ctrl-C before anything was measured.
    """
    compare = settings.dense is not None
    described = [session.describe() for session in sessions]
    engines, workload = load_engines(sessions, settings, reporter)
    texts = random_texts(sessions, workload)
    with enough_memory(
        "timing models", "--batch-size 1, --prompt-tokens 256, --dtype bfloat16, or fewer models at once"
    ):
        timed, first_block = time_models(engines, texts, workload, compare=compare, reporter=reporter)
    memory = [each.memory_use([texts[0][: workload.prompt_tokens]]) for each in engines]
    models = tuple(
        ModelSpeed(model, used, **times) for model, used, times in zip(described, memory, timed, strict=True)
    )
    rounds = len(timed[0]["prompt"].seconds)
    result = Benchmark(
        engine=settings.engine,
        workload=replace(workload, repeats=rounds),
        stopped=rounds < workload.repeats,
        device=engines[0].device,
        dtype=engines[0].dtype,
        models=models,
        compared=tuple(compare_speed(models[0], other, first_block) for other in models[1:] if compare),
    )
    if settings.output is not None:
        write_json(Path(settings.output).expanduser(), result.to_json() | environment())
    return result
