"""Open engines by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamliner.errors import EvaluationError
from streamliner.text.windows import window_length

if TYPE_CHECKING:
    from streamliner.benchmark.settings import BenchmarkSettings
    from streamliner.model.session import Session
    from streamliner.runs.reporter import Reporter

from streamliner.benchmark.engine import Engine

ENGINES = ("transformers", "vllm", "llama.cpp")


def open_engines(
    name: str, sessions: Sequence[Session], given: dict[str, int | None], reporter: Reporter
) -> tuple[list[Engine], BenchmarkSettings]:
    """Complete the settings for the device and the models, then load all models at once.

    Raises:
        EvaluationError: no such engine, it is not installed, or it cannot run these models.
        TextError: a model has fewer positions than were asked for.
    """
    if name not in ENGINES:
        raise EvaluationError(f"There is no engine {name}.", f"Use one of: {', '.join(ENGINES)}.")
    from streamliner.benchmark.engines import llama_cpp, vllm
    from streamliner.benchmark.engines import transformers as plain
    from streamliner.benchmark.settings import BenchmarkSettings

    module: Any = {"transformers": plain, "vllm": vllm, "llama.cpp": llama_cpp}[name]
    device = module.find_device(sessions)
    # Engines that give no answer without a new token need room for it.
    room = 0 if module is plain else 1
    limit = min(window_length(session, None) for session in sessions)
    settings = BenchmarkSettings.usual(device, limit - room, **given)
    for session in sessions:
        window_length(session, settings.prompt_tokens + room, "--prompt-tokens")
        window_length(session, settings.context_tokens + settings.new_tokens, "--context-tokens and --new-tokens")
    whole = sum(session.parameters for session in sessions)
    engines: list[Engine] = []
    for session in sessions:
        engines.append(module.open_one(session, device, settings, session.parameters / whole, reporter))
    dtypes = {engine.dtype for engine in engines}
    if len(dtypes) > 1:
        raise EvaluationError(
            f"The models compute in {' and '.join(sorted(dtypes))}, which a speed-up would tell too.",
            "Add --dtype, such as --dtype bfloat16.",
        )
    return engines, settings
