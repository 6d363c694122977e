"""llama.cpp, through xllamacpp: its server in this process, on GGUF files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from streamliner.benchmark.engine import MemoryUse, TokenIds, clock_seconds
from streamliner.benchmark.workload import Workload
from streamliner.errors import EvaluationError, MissingExtraError
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter


class LlamaCppEngine:
    """A server of its own for each model, without its cache of prompts."""

    prompt_generates = True
    only_first_block = None
    seconds = staticmethod(clock_seconds)  # the server returns when it is done

    @staticmethod
    def find_device(sessions: Sequence[Session]) -> str:
        """Return "gpu" if llama.cpp was built for one that is there, otherwise "cpu"."""
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingExtraError("Running models in llama.cpp", "llama-cpp") from error
        for session in sessions:
            if session.source.kind != "gguf":
                raise EvaluationError(
                    f"llama.cpp runs GGUF files, and {session.source.name} is not one.",
                    "Convert it (docs/tutorials/serve.md says how), or use --engine vllm or transformers.",
                )
            if session.settings.dtype != "auto" or session.settings.device:
                raise EvaluationError(
                    "llama.cpp takes the precision from the GGUF file, and the devices that it was built for.",
                    "Leave out --dtype and --device.",
                )
        kinds = {each["type"].name.rpartition("_")[2] for each in xllamacpp.get_device_info()}
        return "cpu" if kinds <= {"CPU", "ACCEL"} else "gpu"

    def __init__(self, session: Session, device: str, workload: Workload, share: float, reporter: Reporter) -> None:
        import xllamacpp

        reporter.say(f"Loading {session.source.name} ...")
        self._file = Path(session.source.path) / session.source.gguf_file
        self.device, self.dtype = device, "the types of the files"
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self._file)
        parameters.verbosity = -1
        # Otherwise it saves each prompt for later ones while we measure, and moves layers to memory that is free.
        parameters.cache_ram_mib, parameters.fit_params = 0, False
        parameters.n_parallel = workload.batch_size
        # One cache for all texts: otherwise each text has only its share of the context.
        parameters.kv_unified = True
        parameters.n_ctx = max(workload.max_positions, workload.generation_positions) + 8
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise EvaluationError(f"llama.cpp cannot load {self._file}: {error}") from error

    def prompt(self, ids: TokenIds) -> object:
        """Up to one new token: the server returns nothing without one."""
        return self.generate(ids, 1)

    def generate(self, ids: TokenIds, new_tokens: int) -> list[str]:
        """Return the generated texts."""
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
            raise EvaluationError(f"llama.cpp did not answer: {answer.get('message') or answer}")
        return [choice["text"] for choice in answer["choices"]]

    def memory_use(self, ids: TokenIds) -> MemoryUse:
        """The size of the file; llama.cpp does not report the rest."""
        return MemoryUse(weight_bytes=self._file.stat().st_size)
