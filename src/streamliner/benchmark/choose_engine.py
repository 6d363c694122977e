"""Choose an engine by its name and load all models into it."""

from collections.abc import Sequence

from streamliner.benchmark.engine import Engine
from streamliner.benchmark.engines.llama_cpp import LlamaCppEngine
from streamliner.benchmark.engines.transformers import TransformersEngine
from streamliner.benchmark.engines.vllm import VllmEngine
from streamliner.benchmark.workload import Workload, complete_workload
from streamliner.errors import EvaluationError
from streamliner.model.session import Session
from streamliner.plugins import Plugin, find_plugin
from streamliner.runs.reporter import Reporter
from streamliner.settings import BenchmarkSettings

BY_NAME: dict[str, type[Engine]] = {"transformers": TransformersEngine, "vllm": VllmEngine, "llama.cpp": LlamaCppEngine}
NEEDED = ("prompt_generates", "find_device", "prompt", "generate", "seconds", "only_first_block", "memory_use")
"""What the class of an engine has."""


def load_engines(
    sessions: Sequence[Session], settings: BenchmarkSettings, reporter: Reporter
) -> tuple[list[Engine], Workload]:
    """Complete the workload for the device and the models, then load all models at once.

    Raises:
        EvaluationError: the engine is not installed, or it cannot run these models.
        PluginError: the engine is a plug-in, and broken.
        TextError: the workload needs more positions than a model has.
    """
    engine = engine_class(settings.engine)
    device = engine.find_device(sessions)
    generated = 1 if engine.prompt_generates else 0
    longest = min(session.window_length() for session in sessions)
    workload = complete_workload(settings, device, longest - generated)
    for session in sessions:
        session.window_length(workload.prompt_tokens + generated, "--prompt-tokens")
        session.window_length(workload.context_tokens + workload.new_tokens, "--context-tokens and --new-tokens")
    parameters = sum(session.parameters for session in sessions)
    engines = [engine(each, device, workload, each.parameters / parameters, reporter) for each in sessions]
    dtypes = {each.dtype for each in engines}
    if len(dtypes) > 1:
        raise EvaluationError(
            f"The models compute in {' and '.join(sorted(dtypes))}, so their speed cannot be compared.",
            "Add --dtype, such as --dtype bfloat16.",
        )
    return engines, workload


def engine_class(name: str) -> type[Engine]:
    """The engine of that name, one that settings allow; a PluginError if it is a broken plug-in."""
    plugin = find_plugin("engine", name, BY_NAME)
    return BY_NAME[name] if plugin is None else engine_of_plugin(plugin)


def engine_of_plugin(plugin: Plugin) -> type[Engine]:
    """The engine that a plug-in brings; a PluginError if it is broken."""
    engine = plugin.load()
    missing = [name for name in NEEDED if not hasattr(engine, name)]
    if not isinstance(engine, type) or missing:
        raise plugin.wrong(f"is not a class with {', '.join(missing or NEEDED)} (see `Engine` in benchmark/engine.py).")
    return engine
