"""vLLM loads what `cut` writes of real models, and computes what transformers computes: `make vllm`.

vLLM is in an environment of its own, whose Python VLLM_PYTHON names; it pins releases of torch and transformers.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from command import run
from places import SUPPORT
from real_models import gemma, smollm2
from streamliner.model.load import load_model, load_tokenizer
from streamliner.text.windows import text_windows

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [pytest.mark.real, pytest.mark.skipif(PYTHON is None, reason="needs VLLM_PYTHON (make vllm)")]
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "OMP_NUM_THREADS": "1",
}
TEXT, PROMPT, PROMPTS, NEW = 900, 16, 8, 24
ROUNDING = 0.002
"""Of log-probabilities in float32: at most 0.00015 was seen."""


@pytest.mark.parametrize("removed", ["7,10,13", "2,3,7,10,13,14"], ids=["3 blocks", "6 blocks"])
@pytest.mark.parametrize("model", [smollm2, gemma], ids=["SmolLM2", "Gemma 3"])
def test_vllm_computes_what_transformers_computes(capsys, model, removed, tmp_path):
    dense, small = model(tmp_path), tmp_path / "small"
    run(capsys, "cut", dense, "--blocks", removed, "-o", small, "--no-verify", "--dtype", "float32")
    (text,) = text_windows("python-docs:test", load_tokenizer(dense), TEXT, limit=1).windows.tolist()
    prompts = [text[at : at + PROMPT] for at in range(0, PROMPTS * 100, 100)]
    (tmp_path / "request.json").write_text(json.dumps({"prompts": prompts, "text": text, "new": NEW}))
    files = [small, tmp_path / "request.json", tmp_path / "answer.json"]
    script = [PYTHON, SUPPORT / "vllm_outputs.py", *files]
    ended = subprocess.run(script, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=900)
    assert not ended.returncode, ended.stderr[-3000:]
    found = json.loads((tmp_path / "answer.json").read_text())

    reloaded = load_model(small, dtype="float32")
    with torch.inference_mode():
        scores = reloaded(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
    expected = scores.gather(1, torch.tensor(text[1:])[:, None])[:, 0]
    difference = (torch.tensor(found["log_probabilities"]) - expected).abs()
    print(
        f"log-probabilities of {len(expected)} tokens: at most {difference.max():.2g} off, mean {difference.mean():.2g}"
    )
    assert difference.max() < ROUNDING
    for prompt, tokens in zip(prompts, found["tokens"], strict=True):
        assert same_up_to_ties(reloaded, prompt, tokens, ROUNDING)


def same_up_to_ties(model, prompt, tokens, rounding):
    """Whether `tokens` are those that the model writes greedily, up to one that is not, by less than `rounding`."""
    with torch.inference_mode():
        scores = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    likeliest = scores.argmax(-1).tolist()
    step = next((step for step, token in enumerate(tokens) if token != likeliest[step]), None)
    return step is None or (scores[step].max() - scores[step, tokens[step]]).item() < rounding
