"""The private names of other libraries are still there: a release that moves one fails here."""

from __future__ import annotations

import importlib

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from families import make_model
from places import TINY
from streamliner.model.compat import (
    continuation_tokens,
    copy_attention_kernel,
    lm_eval_progress,
    offload_hook,
    reset_accelerator,
    tensors_as_on_disk,
)
from streamliner.model.load import AUTO_CLASSES


def test_the_public_tables_are_those_of_the_auto_classes():
    for name, table in AUTO_CLASSES.items():
        assert getattr(transformers, name)._model_mapping is getattr(transformers, table)


def test_a_module_that_is_not_offloaded_has_no_hook(tiny):
    assert all(offload_hook(module) is None for module in tiny.modules())


def test_the_attention_kernel_is_copied():
    eager = AutoModelForCausalLM.from_pretrained(TINY, attn_implementation="eager").config
    other = make_model("llama").config
    copy_attention_kernel(eager, other)
    assert AutoModelForCausalLM.from_config(other).config._attn_implementation == "eager"


def test_names_on_disk_are_those_of_save_pretrained(tmp_path):
    make_model("mixtral").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    rebuilt = make_model("mixtral")
    rebuilt.load_state_dict(loaded.state_dict())
    from safetensors.torch import load_file

    written, found = load_file(tmp_path / "model.safetensors"), tensors_as_on_disk(loaded, rebuilt)
    assert written.keys() == found.keys()
    assert written.keys() != loaded.state_dict().keys()
    assert all(torch.equal(written[name], found[name]) for name in written)


def test_an_accelerator_of_another_precision_can_be_made():
    from accelerate import Accelerator

    for precision in ("no", "bf16", "no"):
        reset_accelerator()
        assert Accelerator(mixed_precision=precision, cpu=True).mixed_precision == precision
    reset_accelerator()


def test_lm_eval_shows_our_bars_while_open():
    modules = [importlib.import_module(f"lm_eval.{name}") for name in ("models.huggingface", "api.model", "api.task")]
    before, bar = [module.tqdm for module in modules], object()
    with lm_eval_progress(bar):
        assert all(module.tqdm is bar for module in modules)
    assert [module.tqdm for module in modules] == before
    assert callable(importlib.import_module("lm_eval.evaluator").get_git_commit_hash)


@pytest.mark.parametrize("continuation", [" four", " a longer answer"])
def test_lm_eval_splits_context_and_continuation(tiny, tokenizer, continuation):
    from lm_eval.models.huggingface import HFLM

    found = continuation_tokens(HFLM(pretrained=tiny, tokenizer=tokenizer), "Two and two is", continuation)
    whole = tokenizer("Two and two is" + continuation).input_ids
    assert found == whole[-len(found) :]
    assert 0 < len(found) < len(whole)
