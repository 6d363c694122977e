"""Decoders with an encoder: blocks that are named are cut; a search is refused, as it needs what the encoder reads."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from command import run
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.memory import cut_model
from streamliner.cut.structure import Structure
from streamliner.cut.verification import reference_outputs, verify_checkpoint, verify_model
from streamliner.model.blocks import Blocks

SIZES = {
    "vocab_size": 128,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 6,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
T5 = {"vocab_size": 128, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 6}
SPEECH = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64}
MODELS = {
    "BartForConditionalGeneration": ("BartConfig", SIZES | TOKENS),
    "MarianMTModel": ("MarianConfig", SIZES | TOKENS),
    "PegasusForConditionalGeneration": ("PegasusConfig", SIZES | TOKENS),
    "M2M100ForConditionalGeneration": ("M2M100Config", SIZES | TOKENS),
    "T5ForConditionalGeneration": ("T5Config", T5 | TOKENS),
    "MT5ForConditionalGeneration": ("MT5Config", T5 | TOKENS),
    "WhisperForConditionalGeneration": ("WhisperConfig", SIZES | TOKENS | SPEECH),
}
SAMPLE = torch.randint(8, 120, (1, 20), generator=torch.Generator().manual_seed(0))


def make(name):
    config_name, fields = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config_name)(**fields))
    for path, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed_positions" not in path:  # sines, which some classes compute again on loading
            parameter.data.normal_(0, 0.15)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_the_decoder_is_cut_and_the_encoder_stays(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path / "dense")
    blocks, structure = Blocks(model), Structure.of(model)
    assert "decoder" in blocks.path
    assert len(blocks) == 6
    for number, removed in enumerate([(2,), (1, 5)]):
        expected = reference_outputs(blocks, removed, SAMPLE)
        out = tmp_path / f"cut{number}"
        out.mkdir()
        cut_checkpoint(tmp_path / "dense", out, structure, removed)
        verify_checkpoint(out, expected)
        verify_model(cut_model(model, removed), expected)
        dense, kept = (load_file(folder / "model.safetensors") for folder in (tmp_path / "dense", out))
        encoder = [key for key in dense if "encoder" in key and "decoder" not in key]
        assert encoder
        assert all(torch.equal(dense[key], kept[key]) for key in encoder)
        config = json.loads((out / "config.json").read_text())
        assert config.get("encoder_layers", config.get("num_layers")) == 2


def test_a_second_name_of_the_encoders_count_stays(tmp_path):
    """Files of BART and Marian have `num_hidden_layers` next to `encoder_layers`; to transformers they are the same."""
    model = make("BartForConditionalGeneration")
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"encoder_layers": 6, "num_hidden_layers": 2}))
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["decoder_layers"]) == (2, 5)
    verify_checkpoint(tmp_path / "cut", reference_outputs(Blocks(model), (1,), SAMPLE))


def test_t5_keeps_the_block_with_the_biases_of_position():
    assert "relative_attention_bias" in Structure.of(make("T5ForConditionalGeneration")).refusal((0,))


def test_a_search_is_refused_and_says_what_to_do(capsys, tmp_path):
    make("BartForConditionalGeneration").save_pretrained(tmp_path / "m")
    _, err = run(capsys, "search", tmp_path / "m", "--remove", "1", "-o", tmp_path / "r", status=2)
    assert "has an encoder" in err
    assert "--blocks" in err
    out, _ = run(capsys, "cut", tmp_path / "m", "--blocks", "1,4", "-o", tmp_path / "o", "--json")
    assert json.loads(out)["verification"]["tokens"]


def test_there_is_no_perplexity_of_what_the_encoder_reads(capsys, tmp_path):
    make("BartForConditionalGeneration").save_pretrained(tmp_path / "m")
    arguments = ["--perplexity", "python-docs:test", "--window", "32"]
    assert "has an encoder" in run(capsys, "evaluate", tmp_path / "m", *arguments, status=2)[1]
