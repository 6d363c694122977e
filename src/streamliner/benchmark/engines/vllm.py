"""vLLM, in this process, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from streamliner.benchmark.engine import Engine, Tokens
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.errors import EvaluationError
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter

MEMORY = 0.85
"""Share of a GPU that all models may take together."""


CPU_CACHE = 1 << 28
"""Bytes of a model's cache on a CPU, at least; vLLM would take nearly all memory for the first model."""


def find_device(sessions: Sequence[Session]) -> str:
    """The one that vLLM was built for.

    Raises:
        EvaluationError: vLLM is not installed, or a model is not one for it.
    """
    for session in sessions:
        if session.source.kind == "gguf":
            raise EvaluationError(
                f"vLLM runs folders and hub ids here, and {session.source.name} is a GGUF file.",
                "Use --engine llama.cpp.",
            )
        if session.settings.device:
            raise EvaluationError("vLLM chooses the device itself: leave out --device.")
    # Before its import. One process, so that a benchmark that ends leaves none behind.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EvaluationError(
            f"vLLM cannot be imported: {error}",
            "Install it beside streamliner, best in an environment of its own: pip install vllm",
        ) from error
    return str(current_platform.device_type)


def open_one(session: Session, device: str, settings: BenchmarkSettings, share: float, reporter: Reporter) -> Engine:
    """Load it, with its share of the memory.

    Raises:
        EvaluationError: vLLM cannot run it.
    """
    import vllm

    reporter.say(f"Loading {session.source.name} ...")
    try:
        return VLLM(vllm, session, device, settings, MEMORY * share)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise EvaluationError(f"vLLM cannot run {session.source.name}: {str(error)[:500]}") from error


class VLLM(Engine):
    """vLLM without its cache of prompts; on a CPU without compilation, which takes longer than a benchmark."""

    def __init__(self, library: Any, session: Session, device: str, settings: BenchmarkSettings, share: float) -> None:
        self._library = library
        on_gpu = device != "cpu"
        self._model = library.LLM(
            model=session.source.path or session.source.name,
            revision=session.source.revision,
            trust_remote_code=session.source.trust_remote_code,
            dtype=session.settings.dtype,
            max_model_len=settings.longest,
            max_num_seqs=settings.batch_size,
            enable_prefix_caching=False,
            enforce_eager=not on_gpu,
            **({"gpu_memory_utilization": share} if on_gpu else {"kv_cache_memory_bytes": _cache(session, settings)}),
        )
        self.device = device
        self.dtype = str(self._model.llm_engine.model_config.dtype).removeprefix("torch.")

    def prompt(self, ids: Tokens) -> object:
        """Up to one new token, as vLLM gives no answer without any."""
        return self.generate(ids, 1)

    def generate(self, ids: Tokens, new_tokens: int) -> list[list[int]]:
        """The tokens behind the prompts."""
        sampling = self._library.SamplingParams(
            temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": list(text)} for text in ids]
        return [list(each.outputs[0].token_ids) for each in self._model.generate(prompts, sampling, use_tqdm=False)]


def _cache(session: Session, settings: BenchmarkSettings) -> int:
    """Bytes that the texts' keys and values take in 4-byte numbers, twice, as vLLM gives them away in pages."""
    config = session.config.get_text_config(decoder=True)
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens: int = max(settings.prompt_tokens, settings.batch_size * (settings.context_tokens + settings.new_tokens))
    return max(CPU_CACHE, 2 * tokens * session.num_blocks * 2 * heads * width * 4)
