"""Real GGUF files, SmolLM2-135M in Q4_1 and Gemma 3 270M in Q4_K_M: cut as files, they compute in llama.cpp what the
same cut computes in transformers.

llama.cpp rounds the inputs of quantised matrix products to 8 bits, so numbers are compared on the cut file with its
weights in float32, and of the cut file itself that it loads and writes text.
"""

from __future__ import annotations

import time
from pathlib import Path

import gguf
import pytest
import torch

pytest.importorskip("xllamacpp", reason="needs the llama-cpp extra")

from command import run
from gguf_files import write_dequantised
from llama_server import LlamaServer
from real_models import gemma, smollm2
from streamliner.cut.gguf import compare_gguf, prepare_gguf, write_gguf
from streamliner.cut.memory import cut_model
from streamliner.cut.structure import Structure
from streamliner.model.compat import quick_gguf
from streamliner.model.gguf_header import read_header
from streamliner.model.load import load_model, load_tokenizer
from streamliner.model.session import open_model
from streamliner.text.windows import text_windows

pytestmark = pytest.mark.real
PATTERN = "attention.sliding_window_pattern"
TEXT, POSITIONS = 900, (60, 300, 511, 513, 700, 900)
PROMPT, PROMPTS, NEW = 16, 8, 24
ROUNDING = 0.02
"""Of log-probabilities in float32: at most 0.0003 was seen with SmolLM2, and 0.0095 with Gemma, whose GELU
llama.cpp looks up in a table of 16 bits."""


@pytest.fixture(scope="module", params=[smollm2, gemma], ids=["SmolLM2", "Gemma 3"])
def dense(request, tmp_path_factory):
    """A file, its model on dequantised weights, and its session."""
    path = Path(request.param(tmp_path_factory.mktemp("real")))
    return path, load_model(path, dtype="float32"), open_model(path)


@pytest.mark.parametrize("removed", [(7, 10, 13), (2, 3, 7, 10, 13, 14)], ids=["3 blocks", "6 blocks"])
def test_the_cut_file_computes_in_llama_cpp_what_transformers_computes(dense, tmp_path, removed):
    path, model, session = dense
    started, prepared = time.perf_counter(), prepare_gguf([path], Structure(session.shell), removed)
    write_gguf(prepared, tmp_path / "cut.gguf")
    print(f"cut in {time.perf_counter() - started:.2f} s")
    assert compare_gguf(tmp_path / "cut.gguf", prepared) == len(prepared.tensors)
    kept = [index for index in range(session.num_blocks) if index not in removed]
    if len(removed) == 6:  # the reader of the gguf library takes half a minute for Gemma's vocabulary
        same_bytes(path, tmp_path / "cut.gguf", kept)
    check_pattern(path, tmp_path / "cut.gguf", kept)

    tokenizer, small = load_tokenizer(path), cut_model(model, removed)
    windows = text_windows("python-docs:test", tokenizer, TEXT, limit=1).windows
    text = windows[0].tolist()
    quantised = LlamaServer(tmp_path / "cut.gguf", TEXT + 8)
    assert quantised.text(text[:PROMPT], NEW)
    del quantised
    write_dequantised(tmp_path / "cut.gguf", tmp_path / "float.gguf")
    server = LlamaServer(tmp_path / "float.gguf", TEXT + 8)
    with torch.inference_mode():
        expected = small(windows).logits[0].log_softmax(-1)
    worst = 0.0
    for position in POSITIONS:
        found = server.likeliest(text[:position], 20)
        values, there = torch.tensor(list(found.values())), expected[position - 1][list(found)]
        worst = max(worst, (values - there).abs().max().item())
    print(f"log-probabilities of {len(POSITIONS)} x 20 tokens differ by at most {worst:.2g}")
    assert worst < ROUNDING
    prompts = torch.tensor([text[at : at + PROMPT] for at in range(0, PROMPTS * 100, 100)])
    with torch.inference_mode():
        written = small.generate(prompts, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert [row for row in written.tolist() if not same_text(server, tokenizer, row)] == []


def test_the_config_is_that_of_transformers_alone(dense):
    """Which reads the file with the reader of the gguf library."""
    from transformers import AutoConfig

    path = dense[0]
    own = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with quick_gguf():
        assert AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict() == own.to_dict()


def same_text(server, tokenizer, written):
    """Whether llama.cpp writes the same after a prompt, up to a tie: scores that differ by less than rounding."""
    prompt, tokens = written[:PROMPT], written[PROMPT:]
    if server.text(prompt, NEW) == tokenizer.decode(tokens):
        return True
    for step, token in enumerate(tokens):
        found = server.likeliest([*prompt, *tokens[:step]], 2)
        if next(iter(found)) != token:
            return max(found.values()) - found.get(token, -float("inf")) < ROUNDING
    return True  # its text leaves out parts of characters


def same_bytes(dense, cut, kept):
    """By the reader of the gguf library."""
    before = {each.name: each for each in gguf.GGUFReader(dense).tensors}
    after = {each.name: each for each in gguf.GGUFReader(cut).tensors}
    names = {name: name for name in before if not name.startswith("blk.")}
    for new, old in enumerate(kept):
        start = f"blk.{old}."
        names |= {name.replace(start, f"blk.{new}.", 1): name for name in before if name.startswith(start)}
    assert after.keys() == names.keys()
    for new, old in names.items():
        assert (after[new].tensor_type, after[new].n_elements) == (before[old].tensor_type, before[old].n_elements)
        assert after[new].data.tobytes() == before[old].data.tobytes()


def check_pattern(dense, cut, kept):
    """Of Gemma every sixth block attends to all, which llama.cpp would assume of the cut file too."""
    before, after = read_header(dense), read_header(cut)
    if before.architecture == "gemma3":
        assert before.own(PATTERN) is None
        assert after.own(PATTERN) == [index % 6 != 5 for index in kept]
    assert {name: value for name, value in after.keys.items() if name in before.keys and "block_count" not in name} == {
        name: value for name, value in before.keys.items() if "block_count" not in name
    }


def test_prune_of_the_file_end_to_end(capsys, tmp_path):
    path = smollm2(tmp_path)
    arguments = ("--method", "streamline", "--remove", "3", "--num-samples", "1", "--sequence-length", "128")
    arguments += ("--dtype", "float32")  # by default it is what is fast on this machine
    out, _ = run(capsys, "prune", path, "-o", tmp_path / "small.gguf", *arguments)
    assert "245 tensors are those of the dense file, byte for byte." in out
    assert "Verified in float32" in out
    server = LlamaServer(tmp_path / "small.gguf", 64)
    ids = load_tokenizer(path)("The capital of France is").input_ids
    assert server.text(ids, 8)
