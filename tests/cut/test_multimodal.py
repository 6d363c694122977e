"""Models of several parts: the blocks of the text are cut, the whole is saved, and images (or sound) still work."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from close import assert_close
from multimodal import NEEDS_IMAGE, PROCESSED, WRAPPERS, image_inputs, make_wrapper, processor_inputs, text_inputs
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.folds import block_axis
from streamliner.cut.memory import cut_model
from streamliner.cut.names import stack_prefix
from streamliner.cut.structure import Structure
from streamliner.cut.verification import reference_outputs, verify_checkpoint
from streamliner.errors import UnsupportedModelError
from streamliner.model.blocks import Blocks
from streamliner.model.load import auto_class

REMOVALS = ((4,), (0, 3))
# Image features are added after or before these blocks, by position: no config can name another block.
FIXED = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "cohere_compass"), "Image features are added after block 0"),
    "granite4_vision": "Image features are added before block",
    "gemma4": "makes the keys and values",
    "mllama": "would be the first, and is one of cross_attention_layers",
}


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name not in NEEDS_IMAGE])
def test_the_text_is_cut_and_images_still_go_in(name, tmp_path):
    model = make_wrapper(name)
    model.save_pretrained(tmp_path / "dense")
    blocks, structure = Blocks(model), Structure.of(model)
    sample, with_image = text_inputs(name)["input_ids"], image_inputs(name, model)
    done = 0
    for removed in REMOVALS:
        reason = structure.refusal(removed)
        if reason:
            assert FIXED.get(name, "no reason to refuse") in reason
            continue
        done += 1
        expected = reference_outputs(blocks, removed, sample)
        with torch.inference_mode(), blocks.bypass(removed):
            image_logits = model(**with_image, use_cache=False).logits
        out = tmp_path / str(done)
        out.mkdir()
        cut_checkpoint(tmp_path / "dense", out, structure, removed)
        verify_checkpoint(out, expected)
        config = AutoConfig.from_pretrained(out)
        whole = auto_class(config).from_pretrained(out).eval().requires_grad_(False)
        assert type(whole) is type(model)
        for cut in (whole, cut_model(model, removed)):
            with torch.inference_mode():
                assert_close(cut(**with_image, use_cache=False).logits, image_logits)
        before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "dense", out))
        stack = stack_prefix(list(before), blocks.path, len(blocks))
        around = [key for key in before if not key.startswith(f"{stack}.") and block_axis(key) is None]
        assert len(around) > 3
        assert all(torch.equal(before[key], after[key]) for key in around)
    assert done or name in FIXED


@pytest.mark.parametrize("name", FIXED)
def test_blocks_that_images_go_into_by_position_stay(name):
    structure = Structure.of(make_wrapper(name))
    assert FIXED[name] in structure.refusal((0, 3)) + structure.refusal((3,)) + structure.refusal((0, 1, 2))


@pytest.mark.parametrize("name", NEEDS_IMAGE)
def test_what_does_not_run_on_text_is_refused(name):
    with pytest.raises(UnsupportedModelError, match="does not run on text alone"):
        Blocks(make_wrapper(name))


@pytest.mark.parametrize("name", PROCESSED)
def test_through_a_processor(name):
    pytest.importorskip("PIL")
    model, inputs = make_wrapper(name), processor_inputs(name)
    blocks, cut = Blocks(model), cut_model(model, (1, 4))
    with torch.inference_mode():
        with blocks.bypass((1, 4)):
            expected = model(**inputs, use_cache=False).logits
        assert_close(cut(**inputs, use_cache=False).logits, expected)


def test_a_part_that_the_file_leaves_to_the_class_is_written_out(tmp_path):
    model = make_wrapper("llava")
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    config = json.loads(file.read_text())
    del config["text_config"]
    file.write_text(json.dumps(config))
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["text_config"]["num_hidden_layers"] == 5
    assert "num_hidden_layers" not in written
    verify_checkpoint(tmp_path / "cut", reference_outputs(Blocks(model), (1,), text_inputs("llava")["input_ids"]))


def test_a_flat_config_of_an_older_release_follows(tmp_path):
    """Qwen2-VL checkpoints from before nested text configs keep the text's fields at the top of config.json."""
    model = make_wrapper("qwen2_vl")
    model.save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    kept = {key: value for key, value in text.items() if key not in ("model_type", "architectures")}
    file.write_text(json.dumps(kept | config))
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(model), (1,))
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert "text_config" not in written
    assert written["num_hidden_layers"] == 5
    verify_checkpoint(tmp_path / "cut", reference_outputs(Blocks(model), (1,), text_inputs("qwen2_vl")["input_ids"]))
