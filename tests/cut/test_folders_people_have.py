"""Checkpoints and folders as people have them, from public reports (named) and their neighbours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import streamliner as sl
from command import run
from families import make_model
from places import TINY
from streamliner.cut.card import write_model_card
from streamliner.cut.config import with_legacy_rope
from streamliner.errors import MethodError, ModelError, OutputError
from streamliner.model.load import load_config, load_model
from streamliner.model.source import check_safetensors, locate
from streamliner.runs.lock import one_writer
from streamliner.runs.outputs import MARK, check_output, output_folder
from streamliner.search.plan import Plan

QUICK = ("--dtype", "float32", "--quiet")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def folder_with(tmp_path, config=None, generation=None, tensors=None):
    """A copy of the trained fixture with other fields in its files, and further tensors."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    for name, change in (("config.json", config), ("generation_config.json", generation)):
        if change:
            path = folder / name
            value = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(value | change))
    if tensors:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | tensors(weights), folder / "model.safetensors", {"format": "pt"})
    return folder


def cut(capsys, folder, tmp_path, *arguments, blocks="3,7", status=0):
    return run(
        capsys, "cut", folder, "--blocks", blocks, "-o", tmp_path / "cut", *QUICK, "--json", *arguments, status=status
    )


@pytest.mark.parametrize(
    "change",
    [
        {"eos_token_id": [1, 2, 3]},  # exllamav2 566, optimum-neuron 580
        {"eos_token_id": None, "pad_token_id": None},
        {"eos_token_id": [1], "pad_token_id": 1},
        {"eos_token_id": 1, "pad_token_id": -1},  # Llama 2's
        {"eos_token_id": []},
    ],
    ids=str,
)
def test_special_ids_of_any_shape(capsys, tmp_path, change):
    folder = folder_with(tmp_path, change)
    assert json.loads(cut(capsys, folder, tmp_path)[0])["verification"]["cached_generation"]
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert {key: written[key] for key in change} == change


SCALINGS = [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda each: each["rope_type"])
def test_both_spellings_of_rotary_scaling(capsys, tmp_path, scaling):
    """vLLM 28542, unsloth 6925: readers of before transformers 5 know `rope_scaling` alone."""
    width = json.loads((TINY / "config.json").read_text())["head_dim"] // 2
    scaling = {key: value[:width] if isinstance(value, list) else value for key, value in scaling.items()}
    if scaling["rope_type"] in ("llama3", "yarn", "longrope"):
        scaling["original_max_position_embeddings"] = 256
    folder = folder_with(tmp_path, {"rope_parameters": {"rope_theta": 20000.0, **scaling}})
    assert json.loads(cut(capsys, folder, tmp_path)[0])["verification"]["cached_generation"]
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["rope_theta"] == 20000.0
    assert written["rope_scaling"] == scaling
    assert {"rope_theta": 20000.0, **scaling}.items() <= written["rope_parameters"].items()


def test_the_old_spelling_is_left_as_it_is(capsys, tmp_path):
    path = folder_with(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    path.write_text(json.dumps(config))
    assert json.loads(cut(capsys, path.parent, tmp_path)[0])["verification"]["cached_generation"]
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert (written["rope_theta"], written["rope_scaling"]["factor"]) == (20000.0, 2.0)


def test_rotary_parameters_by_kind_have_both_spellings():
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    old = with_legacy_rope({"rope_parameters": kinds})
    assert (old["rope_theta"], old["rope_local_base_freq"]) == (1e6, 1e4)
    assert old["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert "rope_scaling" not in with_legacy_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    assert with_legacy_rope({"rope_parameters": None}) == {"rope_parameters": None}


def test_a_head_that_is_not_tied_stays_so():
    """transformers 45127, peft 2972: the config says tied, the model given is not."""
    model = make_model("llama")
    model.config.tie_word_embeddings = True
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight), requires_grad=False)
    small = sl.cut(model, [2])
    assert not small.config.tie_word_embeddings
    assert torch.equal(small.lm_head.weight, model.lm_head.weight)
    assert small.lm_head.weight.data_ptr() != small.model.embed_tokens.weight.data_ptr()
    assert sl.verify(small, dense=model, removed=[2]).cached_generation
    tied = make_model("llama")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    small = sl.cut(tied, [2])
    assert small.config.tie_word_embeddings
    assert small.lm_head.weight is small.model.embed_tokens.weight


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["embedding", "block", "norm"])
def test_losses_that_are_not_finite_stop_the_search(value, where, tokenizer, tiny):
    """transformers 39972, LLM-Pruner 13."""
    text = sl.calibration_set("python-docs", tokenizer, num_samples=3, sequence_length=32)
    weight = {
        "embedding": tiny.model.embed_tokens.weight,
        "block": tiny.model.layers[5].mlp.down_proj.weight,
        "norm": tiny.model.norm.weight,
    }[where]
    index = int(text.windows[1, 5]) if where == "embedding" else 0
    weight.data.view(-1)[index * (weight.shape[1] if weight.ndim > 1 else 1)] = value
    with pytest.raises(MethodError, match=r"The loss of the dense model is (nan|inf) on window \d"):
        sl.search(tiny, text, remove=2, quiet=True)


@pytest.mark.parametrize("alone", [True, False])
def test_adapters_are_known_before_loading(tmp_path, alone):
    """peft 1381, transformers 43781."""
    folder = folder_with(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    if alone:
        (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="is an adapter" if alone else "files of an adapter"):
        locate(str(folder))


def test_tensors_that_the_dense_model_does_not_use_are_copied(capsys, tmp_path):
    """transformers 3974, vLLM 271, 6528: masked_bias, k_scale and others, in blocks and outside."""
    names = ["model.layers.{}.self_attn.masked_bias", "model.layers.{}.self_attn.k_scale", "model.layers.{}.rotary.x"]
    extra = {name.format(index): torch.ones(1) for name in names for index in range(12)} | {"other": torch.ones(2)}
    folder = folder_with(tmp_path, tensors=lambda weights: extra)
    assert json.loads(cut(capsys, folder, tmp_path)[0])["verification"]["cached_generation"]
    written = load_file(tmp_path / "cut" / "model.safetensors")
    assert sum("masked_bias" in name for name in written) == 10
    assert "other" in written


def test_weights_for_other_programs_are_left_out_and_said(capsys, tmp_path):
    """Mistral's and Llama's own format lies beside the shards (vLLM 11093); it may even be broken."""
    folder = folder_with(tmp_path)
    for name in ("consolidated.safetensors", "original/consolidated.00.pth", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    out, _ = cut(capsys, folder, tmp_path)
    left_out = [text.split(" ")[0] for text in json.loads(out)["left_out"]]
    assert left_out == ["consolidated.safetensors", "onnx/model.onnx", "original/consolidated.00.pth"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "no weight_map"),
        ("{", "broken"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
        ('{"weight_map": {"a": "../model-1.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "does not exist"),
    ],
)
def test_a_broken_index_is_named(tmp_path, index, message):
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        check_safetensors(locate(str(folder)))


def test_weights_of_another_name_only(tmp_path):
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"only consolidated\.safetensors"):
        check_safetensors(locate(str(folder)))


@pytest.mark.parametrize("architectures", [3, "LlamaForCausalLM", [None], {"a": 1}])
def test_architectures_that_are_no_names(tmp_path, architectures):
    with pytest.raises(ModelError, match="architectures"):
        load_config(str(folder_with(tmp_path, config={"architectures": architectures})))


def test_folders_in_a_checkpoint_are_copied(capsys, tmp_path):
    """transformers 36588, vLLM 10966: `additional_chat_templates/`; weights in other formats and links are not."""
    folder = folder_with(tmp_path)
    for name in ("additional_chat_templates/tool.jinja", "a/b/c.txt", "onnx/model.onnx", ".git/config", "sub/x.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    cut(capsys, folder, tmp_path)
    written = {str(file.relative_to(tmp_path / "cut")) for file in (tmp_path / "cut").rglob("*") if file.is_file()}
    assert {"additional_chat_templates/tool.jinja", "a/b/c.txt"} <= written
    assert not any(name.startswith((".git", "onnx", "link", "sub")) for name in written)


@pytest.mark.parametrize(
    ("removed", "period"),
    [((2,), None), ((2, 7), 5), ((0, 6), 5), ((5, 11), "all sliding"), ((0, 1, 2, 3, 4, 6, 7, 8, 9, 10), 1)],
)
def test_a_period_beside_a_list_says_the_same_or_goes(tmp_path, removed, period):
    """vLLM 21927, litgpt 1995, optipfair 20: Gemma 3 with `sliding_window_pattern`."""
    model = make_model("gemma3", num_hidden_layers=12)
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    config = json.loads(path.read_text())
    kinds = ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(12)]
    path.write_text(json.dumps(config | {"sliding_window_pattern": 6, "layer_types": kinds}))
    from streamliner.cut.checkpoint import cut_checkpoint
    from streamliner.cut.structure import Structure

    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", Structure.of(load_model(str(tmp_path / "dense"))), removed)
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    left = [kind for index, kind in enumerate(kinds) if index not in removed]
    assert written["layer_types"] == left
    if period == "all sliding":
        assert written["sliding_window_pattern"] > len(left)
    else:
        assert written.get("sliding_window_pattern") == period


@pytest.mark.parametrize(
    "change",
    [
        {"cache_implementation": "offloaded"},  # Qwen3-ASR 210
        {"stop_strings": ["a"]},
        {"prompt_lookup_num_tokens": 3},  # LlamaFactory 2837
        {"num_beams": 4, "do_sample": True, "temperature": 0.1, "top_k": 0},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"max_length": 3, "min_length": 2},
        {"forced_bos_token_id": 3, "suppress_tokens": [4, 5]},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_verification_does_not_depend_on_the_generation_config(capsys, tmp_path, change):
    folder = folder_with(tmp_path, generation=change)
    assert json.loads(cut(capsys, folder, tmp_path)[0])["verification"]["padded_generation"]
    assert (tmp_path / "cut" / "generation_config.json").read_bytes() == (
        folder / "generation_config.json"
    ).read_bytes()


@pytest.mark.parametrize("verb", ["prune", "search"])
def test_pickles_are_refused_before_the_search(capsys, tmp_path, verb):
    """aprender 267, transformers 31004."""
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    arguments = (verb, folder, "--remove", "2", "-o", tmp_path / "out", *QUICK)
    _, err = run(capsys, *arguments, status=2)
    assert "pytorch_model.bin" in err
    assert "weights_only=True" in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()
    out, _ = run(capsys, "inspect", folder, "--json")
    assert "no safetensors file" in json.loads(out)["notes"][0]


def test_parts_of_a_gguf_file_say_how_to_join_them(tmp_path):
    """transformers 32266, llama.cpp 7215. They are cut (`test_cut_gguf.py`), but not loaded."""
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    write_gguf(TINY, tmp_path / "m.gguf", parts=3)
    for name in (tmp_path / "m-00002-of-00003.gguf", tmp_path / "m-00001-of-00003.gguf", tmp_path):
        with pytest.raises(ModelError, match=r"one of 3 parts[^!]*--merge .*m-00001-of-00003.gguf .*m.gguf"):
            load_model(str(name))


def test_projectors_are_known_by_their_metadata(tmp_path):
    """unsloth 5347, gpustack 2261."""
    gguf = pytest.importorskip("gguf")
    from gguf_files import write_gguf

    model = write_gguf(TINY, tmp_path / "model.gguf")
    for name, architecture in (("mmproj-f16.gguf", "clip"), ("vision.gguf", "clip")):
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        writer.add_uint32("clip.block_count", 2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert locate(str(tmp_path)).gguf_file == model.name


def test_a_folder_of_the_hubs_cache_names_its_snapshot(tmp_path):
    """transformers 27954."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    shutil.copytree(TINY, snapshot)
    with pytest.raises(ModelError, match="snapshots/123"):
        locate(str(tmp_path / "models--a--b"))


def test_a_folder_that_shadows_a_hub_id_is_said(capsys, tmp_path, monkeypatch):
    """modelexpress 217."""
    shutil.copytree(TINY, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    arguments = ("--blocks", "3", "-o", "out", "--dtype", "float32")
    _, err = run(capsys, "cut", "org/name", *arguments)
    assert "the folder here, not the model of that name on the hub" in err


@pytest.mark.parametrize(
    ("blocks", "removed"),
    [("3-5", [3, 4, 5]), ("3,7,9", [3, 7, 9]), ("3 5", [3, 5]), ("1-2, 9", [1, 2, 9]), (" 4 ", [4]), ("7-7", [7])],
)
def test_ranges_of_blocks(capsys, tmp_path, blocks, removed):
    """PruneMe 4, mergekit 360."""
    out, err = run(capsys, "cut", TINY, "--blocks", blocks, "-o", tmp_path / "cut", "--json", "--no-verify")
    assert json.loads(out)["removed"] == removed
    assert f"Removing blocks {', '.join(map(str, removed))}." in err


@pytest.mark.parametrize("blocks", ["3:6", "5-3", "a", "3-", "-3", "3--5", "3.5"])
def test_other_ranges_say_how_to_write_one(capsys, tmp_path, blocks):
    _, err = run(capsys, "cut", TINY, f"--blocks={blocks}", "-o", tmp_path / "cut", status=2)
    assert "3-5" in err


def mark(folder):
    (folder / MARK).write_text("{}")
    (folder / "old").write_text("x")


@pytest.mark.parametrize("place", ["new", "empty", "marked", "link to empty", "link to marked", "current", "nested"])
def test_places_to_write_to(tmp_path, place, monkeypatch):
    """torchkit 9, ludwig 2229."""
    out = tmp_path / "out"
    if place == "nested":
        out = tmp_path / "a" / "b" / "out"
    elif place.startswith("link"):
        (tmp_path / "real").mkdir()
        out.symlink_to(tmp_path / "real")
    elif place != "new":
        out.mkdir()
    if place.endswith("marked"):
        mark(out)
    if place == "current":
        monkeypatch.chdir(out)
        out = "."
    with output_folder(out, overwrite=True) as partial:
        (partial / "config.json").write_text("new")
        (partial / "sub").mkdir()
        (partial / "sub" / "x").write_text("y")
    where = tmp_path / ("a/b/out" if place == "nested" else "out")
    assert sorted(str(path.relative_to(where)) for path in where.rglob("*")) == ["config.json", "sub", "sub/x"]
    assert where.is_symlink() == place.startswith("link")
    if place == "current":  # the shell is still there
        assert subprocess.run([sys.executable, "-c", "import os; os.getcwd()"], check=True)
    assert not [path for path in tmp_path.rglob(".*") if path.name.startswith(".out")]


@pytest.mark.parametrize("left", [".partial-x", ".new-x", "lost+found"])
def test_a_folder_that_is_filled_may_have_left_overs(tmp_path, left):
    """A mount point has lost+found; a killed run leaves its temporary folder inside."""
    (tmp_path / "real" / left).mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with output_folder(tmp_path / "out") as partial:
        (partial / "config.json").write_text("new")
    assert {path.name for path in (tmp_path / "real").iterdir()} - {left} == {"config.json"}
    assert (tmp_path / "real" / left).exists() == (left != ".partial-x")


@pytest.mark.parametrize("place", ["in a file", "dangling link", "a file", "foreign", "marked"])
def test_places_that_are_refused_before_work(tmp_path, place):
    out = tmp_path / "out"
    if place == "in a file":
        (tmp_path / "file").write_text("x")
        out = tmp_path / "file" / "out"
    elif place == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif place == "a file":
        out.write_text("x")
    else:
        out.mkdir()
        mark(out)
        if place == "foreign":
            (out / MARK).unlink()
    with pytest.raises(OutputError):
        check_output(out)


def test_too_little_room_is_seen_before_work(tmp_path):
    with pytest.raises(OutputError, match="needs 1e"):
        check_output(tmp_path / "out", needed=10**27)


def test_what_cannot_be_put_in_place_is_kept(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("streamliner.runs.outputs._replace", refuse)
    with pytest.raises(OutputError, match=r"busy.*kept in") as caught, output_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("x")
    kept = str(caught.value.args[0]).rpartition("kept in ")[2].rstrip(".")
    monkeypatch.undo()
    with output_folder(tmp_path / "out") as partial:  # the same command again
        (partial / "a").write_text("y")
    assert (tmp_path / kept / "a").read_text() == "x"


def test_two_writers_of_one_output(tmp_path):
    """The second to end finds the first one's result, which stays; its own is kept too."""
    with pytest.raises(OutputError, match="appeared"), output_folder(tmp_path / "out") as slow:  # noqa: PT012
        (slow / "a").write_text("slow")
        with output_folder(tmp_path / "out") as fast:
            (fast / "a").write_text("fast")
            assert slow.exists(), "another writer's folder is not taken for a left-over"
    assert (tmp_path / "out" / "a").read_text() == "fast"
    (kept,) = tmp_path.glob(".out.kept-*/a")
    assert kept.read_text() == "slow"


def test_one_writer_of_a_run_folder(tmp_path):
    with one_writer(tmp_path / "run", "search"):
        with pytest.raises(OutputError, match="Another process is at work"), one_writer(tmp_path / "run", "search"):
            pass
        with one_writer(tmp_path / "run", "heal"):
            pass
    with one_writer(tmp_path / "run", "search"):
        pass


@pytest.mark.parametrize("verb", ["evaluate", "benchmark"])
def test_a_tilde_in_output_is_the_home_folder(capsys, tmp_path, monkeypatch, verb):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    work = ("--perplexity", "python-docs:test", "--sequence-length", "32", "--num-samples", "2")
    if verb == "benchmark":
        work = ("--prompt-tokens", "8", "--context-tokens", "4", "--new-tokens", "2", "--repeats", "1")
    run(capsys, verb, TINY, *work, "--output=~/x.json", "--quiet")
    assert json.loads((tmp_path / "x.json").read_text())["models"]
    assert not (tmp_path / "~").exists()


def test_a_cache_that_cannot_be_written_is_a_warning(capsys, tmp_path, monkeypatch):
    """openml-python 906, ilab-on-ocp 26."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    work = ("--perplexity", "python-docs:test", "--sequence-length", "32", "--num-samples", "2")
    for more in ((), ("--no-cache",)):
        out, err = run(capsys, "evaluate", TINY, *work, "--json", *more)
        assert json.loads(out)["models"][0]["perplexity"]
        assert "not cached" in err


CARDS = [
    (
        "---\nlicense: llama3.1\nlanguage:\n- en\nmodel-index: []\n---\n# A\n",
        {"license": "llama3.1", "language": ["en"]},
    ),
    ("---\nbase_model: meta/llama\n---\nx", {"base_model": "meta/llama"}),
    ("# no metadata\n", {}),
    ("---\n: broken [\n---\n", {}),
    ("", {}),
]


@pytest.mark.parametrize(("card", "expected"), CARDS, ids=range(len(CARDS)))
@pytest.mark.parametrize("base", ["org/name", "/home/me/model", "model"])
def test_cards_that_the_hub_accepts(tmp_path, card, expected, base):
    """trl 1873, transformers 32212."""
    import yaml

    (tmp_path / "README.md").write_text(card)
    (tmp_path / "README.dense.md").write_text("the card of its parent")
    result = {"parameters_before": 2, "parameters_after": 1}
    write_model_card(tmp_path, base, Plan((1,), 3, {"name": base}), result)
    _, meta, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(meta)
    if base == "org/name":
        expected = expected | {"base_model": base}
    assert {key: found.get(key) for key in (*expected, "base_model")} == {"base_model": None} | expected
    assert "without 1 of 3 blocks" in text
    assert (tmp_path / "README.dense.md").read_text() == "the card of its parent"
    assert (tmp_path / "README.dense-2.md").read_text() == card
