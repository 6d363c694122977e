"""llama.cpp, through xllamacpp: its server in this process, on GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from streamliner.benchmark.engine import Engine, Tokens
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.errors import EvaluationError, MissingExtraError
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter


def find_device(sessions: Sequence[Session]) -> str:
    """A GPU if llama.cpp was built for one that is there.

    Raises:
        MissingExtraError: without the `llama-cpp` extra.
        EvaluationError: a model is no GGUF file, or was asked for in another way than the file says.
    """
    library = _library()
    for session in sessions:
        if session.source.kind != "gguf":
            raise EvaluationError(
                f"llama.cpp runs GGUF files, and {session.source.name} is none.",
                "Convert it with llama.cpp's convert_hf_to_gguf.py, or use --engine vllm or transformers.",
            )
        if session.settings.dtype != "auto" or session.settings.device:
            raise EvaluationError("llama.cpp computes as the GGUF file says, on the devices that it was built for.")
    kinds = {each["type"].name.rpartition("_")[2] for each in library.get_device_info()}
    return "cpu" if kinds <= {"CPU", "ACCEL"} else "gpu"


def open_one(session: Session, device: str, settings: BenchmarkSettings, share: float, reporter: Reporter) -> Engine:
    """Load it into a server of its own.

    Raises:
        EvaluationError: llama.cpp cannot load it.
    """
    reporter.say(f"Loading {session.source.name} ...")
    return LlamaCpp(_library(), Path(session.source.path) / session.source.gguf_file, device, settings)


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("Running models in llama.cpp", "llama-cpp") from error
    return xllamacpp


class LlamaCpp(Engine):
    """A server without its cache of prompts."""

    def __init__(self, library: Any, file: Path, device: str, settings: BenchmarkSettings) -> None:
        parameters = library.CommonParams()
        parameters.model.path = str(file)
        parameters.verbosity = -1
        # Else it saves each prompt for later ones within the time that is measured, and moves layers to what is free.
        parameters.cache_ram_mib, parameters.fit_params = 0, False
        parameters.n_parallel = settings.batch_size
        # One cache for all texts: else each text has only its share of the context.
        parameters.kv_unified = True
        texts = settings.batch_size * (settings.context_tokens + settings.new_tokens)
        parameters.n_ctx = max(settings.longest, texts) + 8
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        try:
            self._server = library.Server(parameters)
        except RuntimeError as error:
            raise EvaluationError(f"llama.cpp cannot load {file}: {error}") from error
        self._file = file
        self.device = device
        self.dtype = "the types of the files"

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
