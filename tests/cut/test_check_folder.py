"""What is wrong with a checkpoint folder is found, named and mended; sound ones are left in peace."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from families import FAMILIES, make_model
from quantised_files import LAYOUTS, write_quantised
from streamliner.cut.check_folder import check_folder
from streamliner.cut.checkpoint import cut_checkpoint, write_checkpoint
from streamliner.cut.structure import Structure
from streamliner.model.session import open_model

REMOVED = (1, 3)


@pytest.fixture(scope="module")
def dense_folders(tmp_path_factory):
    """Makes the folder of a dense family, once."""
    root = tmp_path_factory.mktemp("dense")

    def make(family):
        if not (root / family).is_dir():
            make_model(family).save_pretrained(root / family)
        return root / family

    return make


@pytest.fixture
def folder_of(dense_folders, tmp_path):
    """Makes a copy of a dense family's folder, or of the one cut from it."""

    def make(family, *, cut):
        out = tmp_path / "broken"
        if not cut:
            return shutil.copytree(dense_folders(family), out)
        out.mkdir()
        cut_checkpoint(dense_folders(family), out, Structure(open_model(dense_folders(family)).shell), REMOVED)
        return out

    return make


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    save_file(dict(change(dict(tensors))), folder / file, metadata={"format": "pt"})


def without_blocks(tensors):
    return {name: t for name, t in tensors.items() if not any(f"layers.{index}." in name for index in REMOVED)}


def in_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    return weight_map


# Each breaks a folder as a tool or a person does. Family, whether cut by us first, what it does; the where of what must
# be found, whether it needs the dense model to be mended, or cannot be at all.


def deleted_by_name(folder):
    """Tensors dropped by their names: holes in the numbering, and the config as it was."""
    change_tensors(folder, without_blocks)


def deleted_by_name_and_counted(folder):
    deleted_by_name(folder)
    change_config(folder, num_hidden_layers=4)


def renumbered_only(folder):
    change_config(folder, num_hidden_layers=6)


def old_lists(folder, key, value):
    change_config(folder, **{key: value})


def lost_index(folder):
    in_shards(folder)


def wrong_index(folder):
    weight_map = in_shards(folder)
    name = min(weight_map)
    weight_map[name] = next(file for file in weight_map.values() if file != weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def old_shards(folder):
    kept = load_file(folder / "model.safetensors")
    weight_map = in_shards(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def lost_head(folder):
    change_tensors(folder, lambda tensors: {name: t for name, t in tensors.items() if name != "lm_head.weight"})


def head_beside_tied(folder):
    change_tensors(folder, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})


def lost_tensor(folder):
    change_tensors(
        folder, lambda tensors: {n: t for n, t in tensors.items() if n != "model.layers.2.mlp.up_proj.weight"}
    )


def other_shape(folder):
    name = "model.layers.2.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors | {name: tensors[name][:-1].clone()})


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_order(folder):
    def swap(tensors):
        names = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
        for name, tensor in tensors.items():
            part = next((part for part in names if part in name), None)
            yield (name.replace(part, names[part]) if part else name), tensor

    change_tensors(folder, swap)


def old_period(folder):
    change_config(folder, sliding_window_pattern=2)


FAULTS = {
    "holes, old config": ("llama", False, deleted_by_name, "model.layers.*", "mends"),
    "holes, lists of the old length": ("olmo3", False, deleted_by_name, "model.layers.*", "mends"),
    "holes, but counted": ("llama", False, deleted_by_name_and_counted, "model.layers.*", "mends"),
    "old number of blocks": ("llama", True, renumbered_only, "config.json: num_hidden_layers", "mends"),
    "old list of kinds": (
        "olmo3",
        True,
        lambda folder: old_lists(
            folder, "layer_types", ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2
        ),
        "config.json: layer_types",
        "needs dense",
    ),
    "old list of indices": (
        "qwen3_moe",
        True,
        lambda folder: old_lists(folder, "mlp_only_layers", [0, 4]),
        "config.json: mlp_only_layers",
        "needs dense",
    ),
    "old number of first blocks": (
        "deepseek_v3",
        True,
        lambda folder: old_lists(folder, "first_k_dense_replace", 2),
        "config.json: first_k_dense_replace",
        "needs dense",
    ),
    "no index": ("llama", True, lost_index, "model.safetensors.index.json", "mends"),
    "wrong index": ("llama", True, wrong_index, "model.safetensors.index.json", "mends"),
    "two sets of weights": ("llama", True, old_shards, "model.safetensors.index.json", "mends"),
    "lost head": ("llama", True, lost_head, "lm_head.weight", "needs dense"),
    "lost tying": (
        "qwen3",
        True,
        lambda folder: change_config(folder, tie_word_embeddings=False),
        "config.json: tie_word_embeddings",
        "needs dense",
    ),
    "a head of its own beside tie_word_embeddings": (
        "qwen3",
        True,
        head_beside_tied,
        "config.json: tie_word_embeddings",
        "mends",
    ),
    "lost tensor": ("llama", True, lost_tensor, "model.layers.2.mlp.up_proj.weight", "needs dense"),
    "other shape": ("llama", True, other_shape, "model.layers.2.mlp.up_proj.weight", "needs dense"),
    "truncated": ("llama", True, truncated, "", "never"),
    "blocks in another order": ("llama", True, other_order, "", "only dense sees it"),
    "a period beside the list": ("gemma3", True, old_period, "config.json: sliding_window_pattern", "mends"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_named_and_mended(fault, dense_folders, folder_of, tmp_path):
    family, cut, breaks, where, how = FAULTS[fault]
    folder = folder_of(family, cut=cut)
    assert not check_folder(folder).faults
    breaks(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    alone, dense = check_folder(folder), open_model(dense_folders(family))
    beside = check_folder(folder, dense)
    for found in (alone, beside) if how != "only dense sees it" else (beside,):
        assert found.faults
        if found is beside or how == "mends":  # alone, an old list may show only in tensors that do not fit it
            assert any(where in each.where for each in found.faults), found
        if (found is alone and how == "mends") or (how in ("mends", "needs dense") and found is beside):
            assert not found.beyond_mending, found
            out = tmp_path / f"mended-{found is alone}"
            out.mkdir()
            write_checkpoint(found.mended, out)
            assert not check_folder(out).faults
            if fault != "a head of its own beside tie_word_embeddings":
                assert not check_folder(out, dense).faults
            model = AutoModelForCausalLM.from_pretrained(out)
            if found is beside:
                assert found.removed == REMOVED
                expected = AutoModelForCausalLM.from_pretrained(dense_folders(family))
                blocks = [block for index, block in enumerate(expected.model.layers) if index not in REMOVED]
                for own, other in zip(model.model.layers, blocks, strict=True):
                    pairs = zip(own.state_dict().items(), other.state_dict().items(), strict=True)
                    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
        else:
            assert found.beyond_mending
            assert found.mended is None
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_folders_have_no_fault(family, dense_folders, folder_of):
    dense = dense_folders(family)
    assert not check_folder(dense).faults
    found = check_folder(dense, open_model(dense))
    assert (found.faults, found.removed) == ((), ())
    folder = folder_of(family, cut=True)
    found = check_folder(folder, open_model(dense))
    assert (found.faults, found.removed) == ((), REMOVED)
    assert not check_folder(folder).faults


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_quantised_folders_have_no_fault(layout, tmp_path):
    """Transformers cannot be asked about all of them here, so their blocks are compared with each other."""
    dense = write_quantised(layout, tmp_path / "dense")
    out = tmp_path / "cut"
    out.mkdir()
    cut_checkpoint(dense, out, Structure(open_model(dense).shell), REMOVED)
    assert not check_folder(dense).faults
    assert not check_folder(out).faults
    found = check_folder(out, open_model(dense))
    assert (found.faults, found.removed) == ((), REMOVED)


def test_settings_of_quantisation_that_name_removed_blocks_are_found_and_mended(tmp_path):
    dense = write_quantised("gptq", tmp_path / "dense")
    out, mended = tmp_path / "cut", tmp_path / "mended"
    out.mkdir()
    mended.mkdir()
    cut_checkpoint(dense, out, Structure(open_model(dense).shell), REMOVED)
    right = json.loads((out / "config.json").read_text())["quantization_config"]
    old = json.loads((dense / "config.json").read_text())["quantization_config"]
    change_config(out, quantization_config=old | {"modules_in_block_to_quantize": [["model.layers.5.mlp.up_proj"]]})
    found = check_folder(out, open_model(dense))
    assert [fault.where for fault in found.faults] == ["config.json: quantization_config"]
    write_checkpoint(found.mended, mended)
    assert not check_folder(mended, open_model(dense)).faults
    assert right.keys() <= json.loads((mended / "config.json").read_text())["quantization_config"].keys()
