"""llama.cpp, through xllamacpp: its server in this process, on GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from streamliner.benchmark.engine import Engine, Tokens
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.errors import EvaluationError, MissingExtraError
from streamliner.session import Reporter, Session


def open_all(
    sessions: Sequence[Session], given: dict[str, int | None], reporter: Reporter
) -> tuple[list[Engine], BenchmarkSettings]:
    """All files in servers of their own.

    Raises:
        MissingExtraError: without the `llama-cpp` extra.
        EvaluationError: a model is no GGUF file, or llama.cpp cannot load it.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("Running models in llama.cpp", "llama-cpp") from error
    for session in sessions:
        if session.source.kind != "gguf":
            raise EvaluationError(
                f"llama.cpp runs GGUF files, and {session.source.name} is none.",
                "Convert it with llama.cpp's convert_hf_to_gguf.py, or use --engine vllm or transformers.",
            )
        if session.settings.dtype != "auto" or session.settings.device:
            raise EvaluationError("llama.cpp computes as the GGUF file says, on the devices that it was built for.")
    kinds = {str(each["type"]).rpartition("_")[2].lower() for each in xllamacpp.get_device_info()}
    device = "cpu" if kinds <= {"cpu", "accel"} else "gpu"
    settings = BenchmarkSettings.usual(device, **given)
    engines: list[Engine] = []
    for session in sessions:
        reporter.say(f"Loading {session.source.name} ...")
        engines.append(LlamaCpp(xllamacpp, Path(session.source.path) / session.source.gguf_file, device, settings))
    return engines, settings


class LlamaCpp(Engine):
    """A server without its cache of prompts."""

    def __init__(self, library: Any, file: Path, device: str, settings: BenchmarkSettings) -> None:
        parameters = library.CommonParams()
        parameters.model.path = str(file)
        parameters.verbosity = -1
        parameters.n_parallel = settings.batch_size
        # One cache for all texts: else each text has only its share of the context.
        parameters.kv_unified = True
        texts = settings.batch_size * (settings.context_tokens + settings.new_tokens)
        parameters.n_ctx = max(settings.context, texts) + 8
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        try:
            self._server = library.Server(parameters)
        except RuntimeError as error:
            raise EvaluationError(f"llama.cpp cannot load {file}: {error}") from error
        self._file = file
        self.device = device
        self.dtype = "the files' types"

    def prompt(self, ids: Tokens) -> object:
        """Up to one new token, as the server gives no answer without any."""
        return self._complete(ids, 1)

    def generate(self, ids: Tokens, new_tokens: int) -> list[str]:
        """The texts behind the prompts."""
        return [choice["text"] for choice in self._complete(ids, new_tokens)["choices"]]

    def memory(self, ids: Tokens) -> dict[str, float | None]:
        """The file's size; llama.cpp does not tell the rest."""
        return super().memory(ids) | {"weight_bytes": self._file.stat().st_size}

    def _complete(self, ids: Tokens, new_tokens: int) -> dict[str, Any]:
        prompts = [list(text) for text in ids]
        request = {
            "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "n_predict": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer: dict[str, Any] = self._server.handle_completions(request)
        if "choices" not in answer:
            raise EvaluationError(f"llama.cpp does not answer: {answer.get('message') or answer}")
        return answer
