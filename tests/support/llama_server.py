"""Greedy tokens and log-probabilities of llama.cpp, in float32 as far as the file is."""

from __future__ import annotations

from pathlib import Path

import xllamacpp


class LlamaServer:
    """A model in llama.cpp, with a cache in float32 and without flash attention, on one thread."""

    def __init__(self, file: Path, positions: int) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.verbosity = -1
        parameters.cache_ram_mib, parameters.fit_params = 0, False
        parameters.n_parallel, parameters.n_ctx, parameters.warmup = 1, positions, False
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(parameters)

    def text(self, ids: list[int], count: int) -> str:
        """The greedy continuation of a prompt."""
        return self._complete(ids, count, 0)["text"]

    def likeliest(self, ids: list[int], count: int) -> dict[int, float]:
        """Log-probabilities of the likeliest tokens after a prompt, by token, the likeliest first."""
        (found,) = self._complete(ids, 1, count)["logprobs"]["content"]
        return {each["id"]: each["logprob"] for each in found["top_logprobs"]}

    def _complete(self, ids: list[int], count: int, likeliest: int) -> dict:
        request = {
            "prompt": list(ids),
            "n_predict": count,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": likeliest > 0,  # a longer beginning of the same text then costs its new tokens alone
            "n_probs": likeliest,
        }
        return self.server.handle_completions(request)["choices"][0]
