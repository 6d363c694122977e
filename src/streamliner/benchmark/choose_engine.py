"""Choose an engine by its name and load all models into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamliner.benchmark.engine import Engine
from streamliner.benchmark.engines import llama_cpp, transformers, vllm
from streamliner.benchmark.workload import Workload, complete_workload
from streamliner.errors import EvaluationError
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter
from streamliner.settings import BenchmarkSettings
from streamliner.text.windows import window_length


@dataclass(frozen=True)
class EngineChoice:
    """How to use an engine.

    Attributes:
        find_device: checks that the engine can run these models here, and returns the device that it will use.
        load: loads one model for a workload; `share` is its part of the parameters of all models.
        prompt_generates: whether a prompt always generates one token, which needs a position of its own.
    """

    find_device: Callable[[Sequence[Session]], str]
    load: Callable[[Session, str, Workload, float, Reporter], Engine]
    prompt_generates: bool


BY_NAME = {
    "transformers": EngineChoice(transformers.find_device, transformers.load, prompt_generates=False),
    "vllm": EngineChoice(vllm.find_device, vllm.load, prompt_generates=True),
    "llama.cpp": EngineChoice(llama_cpp.find_device, llama_cpp.load, prompt_generates=True),
}


def load_engines(
    sessions: Sequence[Session], settings: BenchmarkSettings, reporter: Reporter
) -> tuple[list[Engine], Workload]:
    """Complete the workload for the device and the models, then load all models at once.

    Args:
        sessions: of the models.
        settings: name of the engine, and what the user set of the workload.
        reporter: where messages go.

    Raises:
        EvaluationError: the engine is not installed, or it cannot run these models.
        TextError: the workload needs more positions than a model has.
    """
    engine = BY_NAME[settings.engine]
    device = engine.find_device(sessions)
    generated = 1 if engine.prompt_generates else 0
    longest = min(window_length(session, None) for session in sessions)
    workload = complete_workload(settings, device, longest - generated)
    for session in sessions:
        window_length(session, workload.prompt_tokens + generated, "--prompt-tokens")
        window_length(session, workload.context_tokens + workload.new_tokens, "--context-tokens and --new-tokens")
    parameters = sum(session.parameters for session in sessions)
    engines = [
        engine.load(session, device, workload, session.parameters / parameters, reporter) for session in sessions
    ]
    dtypes = {each.dtype for each in engines}
    if len(dtypes) > 1:
        raise EvaluationError(
            f"The models compute in {' and '.join(sorted(dtypes))}, so their speed cannot be compared.",
            "Add --dtype, such as --dtype bfloat16.",
        )
    return engines, workload
