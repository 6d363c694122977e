"""A third of the decoder types of transformers, with every kind of rule; `make architectures` checks all types."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
import transformers
from architectures import DOCUMENT, MARKER, check, comparable, document, row, written_rows
from safetensors.torch import load_file, save_file

import zoo
from odd import OddConfig, OddForText
from streamliner.cut import checkpoint as checkpoint_module, config as config_module
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.folds import BLOCK_AXIS, FOLDS, no_change
from streamliner.cut.memory import cut_model
from streamliner.cut.rules import FIELDS, JOINT
from streamliner.cut.structure import Structure
from streamliner.cut.verification import reference_outputs, verify_checkpoint
from streamliner.errors import RemovalError, StreamlinerError, UnsupportedModelError, VerificationError
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.search.registry import make_method, method_names
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet

SAMPLE = torch.randint(8, 120, (1, 24), generator=torch.Generator().manual_seed(0))
BY_RULE = [
    "afmoe",
    "bailing_hybrid",
    "bamba",
    "beam",
    "big_bird",
    "deepseek_v2",
    "deepseek_v32",
    "diffllama",
    "dots3_note_text",
    "ernie4_5_moe",
    "gemma2",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_unified",
    "glm_moe_dsa",
    "gpt2",
    "gpt_neo",
    "gpt_neox_japanese",
    "granite_swa",
    "inkling2_text",
    "jamba",
    "laguna",
    "lfm2_moe",
    "llama4_text",
    "minicpm3",
    "minimax",
    "mllama",
    "nemotron_h",
    "qwen2_moe",
    "qwen4_exp_text",
    "recurrent_gemma",
    "reformer",
    "zamba2",
    "zaya",
]
"""With a config field that has a rule, or a fold."""
OF_OTHER_BUILD = [
    "apertus",
    "bart",
    "bert",
    "bloom",
    "blt",
    "cpmant",
    "deepseek_v4",
    "doge",
    "emu3",
    "falcon_h1",
    "falcon_mamba",
    "fuyu",
    "git",
    "hy_v4",
    "kimi_linear",
    "lfm3",
    "longcat_flash",
    "mamba2",
    "modernbert-decoder",
    "moshi",
    "mpt",
    "olmo_hybrid",
    "prophetnet",
    "rwkv",
    "whisper",
    "xlm",
    "xlstm",
    "zamba",
]
"""Built differently in other ways."""
TEXT = DOCUMENT.read_text()
ROWS = written_rows(TEXT)


@pytest.mark.parametrize("model_type", BY_RULE + OF_OTHER_BUILD)
def test_every_removal_is_right_or_refused(model_type, tmp_path):
    """As docs/architectures.md says, whatever release of transformers it was written with."""
    found = row(check(model_type, tmp_path))
    assert comparable(found) == comparable(ROWS[model_type]), "run make architectures"


def test_every_type_has_a_row():
    """Types that a newer release brings show up in the summary of the test run."""
    new = [model_type for model_type in zoo.model_types() if model_type not in ROWS]
    if new:
        assert f"With transformers {transformers.__version__}," not in TEXT
        pytest.xfail(f"docs/architectures.md has no row yet for {', '.join(new)}: run make architectures")


def test_the_document_counts_its_rows():
    done = [re.search(r"\| (\d+) of (\d+) \|", found) for found in ROWS.values()]
    whole = sum(" | refused | " in found for found in ROWS.values())
    assert f"{len(ROWS)} types: {sum(map(bool, done))} are cut, {whole} refused whole" in TEXT
    assert f"{sum(int(match[1]) for match in done if match)} were cut with logits" in TEXT
    assert ", 0 failed." in TEXT
    assert document([], TEXT).startswith(TEXT[: TEXT.index(MARKER)])


def test_every_kind_of_rule_is_among_the_types_tested():
    fields = {
        key for model_type in BY_RULE for key in zoo.tiny_config(model_type).get_text_config(decoder=True).to_dict()
    }
    missing = {FIELDS[key] for key in FIELDS} - {FIELDS[key] for key in FIELDS if key in fields}
    assert not missing


def cut_and_verify(model, removed, folder):
    """Cut on disk as users do, and verify."""
    model.save_pretrained(folder / "dense")
    blocks, structure = Blocks(model), Structure.of(model)
    (folder / "cut").mkdir()
    cut_checkpoint(folder / "dense", folder / "cut", structure, removed)
    verify_checkpoint(folder / "cut", reference_outputs(blocks, removed, SAMPLE))


def left(key, value, removal):
    return value


def first_entries(key, value, removal):
    return value[: len(removal.kept)]


WRONG_FIELDS = {
    "layer_types": ("gemma2", (2,), first_entries),
    "mlp_layer_types": ("laguna", (0,), left),
    "no_rope_layers": ("llama4_text", (2,), first_entries),
    "moe_layers": ("llama4_text", (0,), left),
    "attn_layer_indices": ("bamba", (0,), left),
    "ple_layer_ids": ("qwen4_exp_text", (1,), left),
    "per_layer_config": ("dots3_note_text", (1,), left),
    "first_k_dense_replace": ("deepseek_v2", (0,), left),
    "num_kv_shared_layers": ("gemma4_text", (4,), left),
    "block_types": ("recurrent_gemma", (0,), left),
    "scale_depth": ("minicpm3", (1, 2), left),
    "layer_rope_theta": ("granite_swa", (0,), first_entries),
    "indexer_types": ("glm_moe_dsa", (1,), first_entries),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_wrong_rule_for_a_field_is_caught(field, monkeypatch, tmp_path):
    model_type, removed, wrong = WRONG_FIELDS[field]
    model = zoo.tiny_model(model_type)
    cut_and_verify(model, removed, tmp_path)
    monkeypatch.setitem(FIELDS, field, wrong)
    (tmp_path / "again").mkdir()
    with pytest.raises(StreamlinerError):
        cut_and_verify(model, removed, tmp_path / "again")


@pytest.mark.parametrize(
    ("rule", "model_type", "removed"),
    [
        ("sparse_step", "qwen2_moe", (0,)),
        ("expert_range", "ernie4_5_moe", (0,)),
        ("periods", "jamba", (0, 1, 2, 3)),
        ("shared_keys_and_values", "gemma3n_text", (2,)),
        ("first_block", "minimax", (0, 1)),
    ],
)
def test_a_joint_rule_left_out_is_caught(rule, model_type, removed, monkeypatch, tmp_path):
    monkeypatch.setattr(config_module, "JOINT", tuple(each for each in JOINT if each.__name__ != rule))
    monkeypatch.setitem(zoo.SPECIAL, "qwen2_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    with pytest.raises(
        (StreamlinerError, KeyError)
    ):  # without a block that makes keys for others, the model itself fails
        cut_and_verify(zoo.tiny_model(model_type), removed, tmp_path)


FOLDED = {
    "scale_attn_by_inverse_layer_idx": ("gpt2", (1,)),
    "lambda_init": ("diffllama", (1,)),
    "attn_residual_add_idx": ("beam", (1,)),
    "use_bias": ("gpt_neox_japanese", (5,)),
    "use_eda": ("zaya", (0,)),
}


@pytest.mark.parametrize("attribute", FOLDED)
def test_a_fold_left_out_is_caught_before_anything_is_written(attribute, monkeypatch, tmp_path):
    model_type, removed = FOLDED[attribute]
    monkeypatch.delitem(FOLDS, attribute)
    with pytest.raises(UnsupportedModelError, match=r"Block \d would not be the same block"):
        cut_and_verify(zoo.tiny_model(model_type), removed, tmp_path)
    assert list((tmp_path / "cut").iterdir()) == []


@pytest.mark.parametrize("attribute", FOLDED)
def test_a_fold_that_changes_nothing_is_caught_after_writing(attribute, monkeypatch, tmp_path):
    model_type, removed = FOLDED[attribute]
    monkeypatch.setitem(FOLDS, attribute, dataclasses.replace(FOLDS[attribute], change=lambda tensors, place: {}))
    with pytest.raises(VerificationError):
        cut_and_verify(zoo.tiny_model(model_type), removed, tmp_path)


def test_every_fold_is_planted_wrong():
    assert set(FOLDED) == {name for name, fold in FOLDS.items() if fold.change is not no_change}


def test_minimax_without_the_buffers_that_depend_on_depth_is_refused(tmp_path):
    """They come with the weights; a checkpoint without them would silently get the wrong ones from the class."""
    model = zoo.tiny_model("minimax")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "slope_rate" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "cut").mkdir()
    with pytest.raises(UnsupportedModelError, match="slope_rate would have to change, but it is missing"):
        cut_checkpoint(tmp_path, tmp_path / "cut", Structure.of(model), (0,))


def test_slices_of_the_wrong_blocks_are_caught(monkeypatch, tmp_path):
    def first_slices(tensor, axis, removal):
        size = tensor.shape[axis] // removal.num_blocks
        return tensor.narrow(axis, 0, size * len(removal.kept))

    monkeypatch.setattr(checkpoint_module, "keep_slices", first_slices)
    with pytest.raises(VerificationError, match="logits"):
        cut_and_verify(zoo.tiny_model("gemma3n_text"), (0,), tmp_path)
    monkeypatch.delitem(BLOCK_AXIS, "embed_tokens_per_layer.weight")
    (tmp_path / "again").mkdir()
    with pytest.raises(UnsupportedModelError, match="embed_tokens_per_layer"):
        cut_and_verify(zoo.tiny_model("gemma3n_text"), (0,), tmp_path / "again")


def test_the_names_in_an_older_config_stay(tmp_path):
    """Other engines read `mamba` and `attention`, for which transformers 5 has other names."""
    model = zoo.tiny_model("granitemoehybrid")
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    config = json.loads(file.read_text())
    older = {"linear_attention": "mamba", "full_attention": "attention"}
    config["layer_types"] = [older[kind] for kind in config["layer_types"]]
    file.write_text(json.dumps(config))
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (0, 2))
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["layer_types"] == ["mamba", "mamba", "mamba", "attention"]
    verify_checkpoint(tmp_path / "cut", reference_outputs(Blocks(model), (0, 2), SAMPLE))


def test_rwkv_that_rescales_is_refused_with_a_hint(monkeypatch):
    monkeypatch.setitem(zoo.SPECIAL["rwkv"], "rescale_every", 3)
    model = zoo.tiny_model("rwkv")
    with pytest.raises(UnsupportedModelError, match="Set rescale_every to 0"):
        Blocks(model)
    with torch.no_grad():
        model(input_ids=SAMPLE)
    with pytest.raises(UnsupportedModelError, match="scaled its weights by block"):
        cut_model(model, (2,))


def test_tensors_that_blocks_share_move_to_one_that_stays(monkeypatch, tmp_path):
    """Zamba's blocks with attention share one transformer, stored with the first of them."""
    kinds = ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "mamba"]
    monkeypatch.setitem(zoo.SPECIAL, "zamba", {"layers_block_type": kinds})
    cut_and_verify(zoo.tiny_model("zamba"), (1,), tmp_path)


def test_a_search_leaves_out_blocks_that_must_stay():
    model = zoo.tiny_model("modernbert-decoder")
    structure = Structure.of(model)
    windows = torch.randint(8, 120, (2, 16), generator=torch.Generator().manual_seed(1))
    probe = Probe(Blocks(model), CalibrationSet(windows, {}), refusal=structure.refusal)
    assert "attn_norm" in probe.refusal([0])
    for name in method_names():
        frontier = run_method(probe, make_method(name, {"protect_first": 0, "protect_last": 0}), name, 3)
        assert all(0 not in point.removed for point in frontier.points)


def test_a_search_that_cannot_continue_says_why():
    model = zoo.tiny_model("gemma3n_text")
    windows = torch.arange(8, 40).view(2, 16)
    probe = Probe(Blocks(model), CalibrationSet(windows, {}), refusal=Structure.of(model).refusal)
    with pytest.raises(
        RemovalError, match=r"cannot remove more than 2 blocks of this model\. Block 2 makes the keys and values"
    ):
        run_method(probe, make_method("sleb", {"protect_first": 0, "protect_last": 2}), "sleb", 4)


def test_where_no_block_can_be_removed_alone_the_error_says_what_to_try():
    model = zoo.tiny_model("jamba")
    probe = Probe(
        Blocks(model), CalibrationSet(torch.arange(8, 40).view(2, 16), {}), refusal=Structure.of(model).refusal
    )
    with pytest.raises(RemovalError, match="No single block of this model can be removed") as caught:
        run_method(probe, make_method("sleb", {}), "sleb", 2)
    assert "--method streamline" in caught.value.hint
    assert run_method(probe, make_method("streamline", {}), "streamline", 2).points[-1].removed == (4, 5)


transformers.AutoConfig.register("odd", OddConfig)
transformers.AutoModelForCausalLM.register(OddConfig, OddForText)


def odd(**fields):
    torch.manual_seed(0)
    return OddForText(OddConfig(**fields)).eval().requires_grad_(False)


def test_an_unknown_type_is_cut_right(tmp_path):
    cut_and_verify(odd(), (0, 2), tmp_path)
    assert len(OddForText.from_pretrained(tmp_path / "cut").tower) == 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ranks": [1, 2, 3, 4, 5]}, "ranks has 5 entries"),
        ({"ranks": {"0": 1, "4": 2}}, "ranks is a dict by number"),
        ({"fault": "dict"}, "does not return the residual stream first"),
        ({"fault": "between"}, "input of block 3 is not the output of block 2"),
        ({"fault": "hidden index"}, "logits"),
        ({"ranks": 5}, "No stack of blocks was found"),
    ],
)
def test_an_unknown_type_that_would_be_wrong_is_refused(fields, reason, tmp_path):
    with pytest.raises(StreamlinerError, match=reason):
        cut_and_verify(odd(**fields), (1,), tmp_path)
