"""Models by name and models in memory."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch

from families import make_model
from places import TINY
from streamliner.errors import ModelError
from streamliner.model.fingerprint import checkpoint_hash
from streamliner.model.load import load_config, load_model, load_tokenizer
from streamliner.model.session import Session, checkpoint_bytes, open_model
from streamliner.model.source import checkpoint_folder, locate
from streamliner.settings import ModelSettings


@pytest.mark.parametrize("kind", [str, lambda path: path, lambda path: locate(str(path))])
def test_models_are_loaded_from_a_name_a_path_or_a_source(kind):
    assert load_config(kind(TINY)).num_hidden_layers == 12
    assert load_model(kind(TINY), dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(kind(TINY)).vocab_size > 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3"])
def test_a_model_in_memory(family):
    model = make_model(family)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    session = open_model(model)
    assert session.source.kind == "memory"
    assert session.num_blocks == 6
    assert all(parameter.is_meta for parameter in session.shell.parameters())
    assert session.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint_bytes(session) >= 4 * session.parameters
    assert session.load().model is model
    session.release()
    assert session.load().model is model
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    assert session.describe()["removed"] == []


def test_a_model_in_memory_is_named_after_where_it_came_from(tiny):
    assert open_model(tiny).source.name == open_model(TINY).source.name == str(TINY)
    assert open_model(tiny).identity == open_model(TINY).identity
    assert Session.of(tiny, name="mine").source.name == "mine"
    assert Session.of(make_model("llama")).source.name == "LlamaForCausalLM"


def test_the_tokenizer_is_the_given_one_or_that_next_to_the_weights(tiny, tokenizer):
    assert open_model(TINY).tokenizer().get_vocab() == tokenizer.get_vocab()
    assert open_model(TINY, tokenizer=tokenizer).tokenizer() is tokenizer
    assert open_model(tiny, tokenizer=tokenizer).tokenizer() is tokenizer
    with pytest.raises(ModelError, match="without a tokenizer"):
        open_model(tiny).tokenizer()


def test_files_of_a_model_in_memory_are_not_available(tiny):
    source = open_model(tiny).source
    for read in (load_model, load_tokenizer, checkpoint_folder):
        with pytest.raises(ModelError, match="model in memory"):
            read(source)
    assert checkpoint_hash(source) is None


def test_a_session_is_opened_once(tiny):
    session = open_model(tiny)
    assert open_model(session) is session


def test_what_is_no_model_in_evaluation_mode_is_refused(tiny):
    with pytest.raises(ModelError, match="not Linear"):
        open_model(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="training mode"):
        open_model(tiny.train())


def test_a_loaded_model_is_released_and_loaded_again():
    session = open_model(TINY, ModelSettings(dtype="float32", device="cpu"))
    blocks = session.load()
    assert session.load() is blocks
    session.release()
    assert session.blocks is None
    assert session.load() is not blocks


def test_the_hash_of_a_checkpoint_is_that_of_its_weights(tmp_path, tiny):
    for name in ("a", "b", "c"):
        if name == "c":
            tiny.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1
        tiny.save_pretrained(tmp_path / name)
    first, second, third = (checkpoint_hash(locate(tmp_path / name)) for name in ("a", "b", "c"))
    assert first == second
    assert first != third


@pytest.mark.parametrize("absent", ["sentencepiece", "google.protobuf"])
def test_a_tokenizer_without_its_package_names_it(tmp_path, monkeypatch, absent):
    """LLaVA 1522: transformers speaks of tiktoken and of missing files."""
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not one")
    installed = importlib.util.find_spec
    monkeypatch.setattr("streamliner.model.load.find_spec", lambda name: None if name == absent else installed(name))
    with pytest.raises(ModelError, match=absent.rpartition(".")[2]):
        load_tokenizer(str(tmp_path))
