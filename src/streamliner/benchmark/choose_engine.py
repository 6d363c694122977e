"""Choose an engine by its name and load all models into it."""

from collections.abc import Sequence

from streamliner.benchmark.engine import Engine
from streamliner.benchmark.engines.llama_cpp import LlamaCppEngine
from streamliner.benchmark.engines.transformers import TransformersEngine
from streamliner.benchmark.engines.vllm import VllmEngine
from streamliner.benchmark.workload import Workload, complete_workload
from streamliner.errors import EvaluationError
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter
from streamliner.settings import BenchmarkSettings

BY_NAME: dict[str, type[Engine]] = {"transformers": TransformersEngine, "vllm": VllmEngine, "llama.cpp": LlamaCppEngine}


def load_engines(
    sessions: Sequence[Session], settings: BenchmarkSettings, reporter: Reporter
) -> tuple[list[Engine], Workload]:
    """Complete the workload for the device and the models, then load all models at once.

    Raises:
        EvaluationError: the engine is not installed, or it cannot run these models.
        TextError: the workload needs more positions than a model has.
    """
    engine = BY_NAME[settings.engine]
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
