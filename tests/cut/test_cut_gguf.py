"""A GGUF file is cut by names and bytes: kept tensors and keys are those of the dense file, in every type."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

import gguf

from families import make_model
from gguf_files import write_gemma_gguf, write_gguf
from places import TINY
from streamliner.cut import gguf_keys
from streamliner.cut.gguf import compare_gguf, prepare_gguf, write_gguf as write_cut
from streamliner.cut.gguf_keys import assumed_pattern, cut_keys, pattern_note
from streamliner.cut.memory import cut_model
from streamliner.cut.rules import Removal
from streamliner.cut.structure import Structure
from streamliner.errors import ModelError, UnsupportedModelError, VerificationError
from streamliner.model.gguf_header import Header, read_header
from streamliner.model.load import load_model
from streamliner.model.mark import GGUF_MARK
from streamliner.model.session import open_model
from streamliner.verbs.inspect import inspect

BLOCKS, REMOVED = 12, (0, 4, 5)
KEPT = [index for index in range(BLOCKS) if index not in REMOVED]


@pytest.fixture(scope="module")
def structure():
    return Structure.of(load_model(TINY))


def fields(path):
    """Each key with the types of its value and its bytes, as the gguf library reads them."""
    reader = gguf.GGUFReader(path)
    found = {name: (field.types, [part.tobytes() for part in field.parts]) for name, field in reader.fields.items()}
    return {name: value for name, value in found.items() if not name.startswith("GGUF.")}


def tensors(path):
    """Each tensor with its type, shape and bytes, as the gguf library reads them."""
    reader = gguf.GGUFReader(path)
    return {each.name: (each.tensor_type, each.shape.tolist(), each.data.tobytes()) for each in reader.tensors}


def cut(path, structure, out, mark="", removed=REMOVED):
    files = path if isinstance(path, list) else [path]
    prepared = prepare_gguf(files, structure, removed, mark)
    write_cut(prepared, out)
    assert out.stat().st_size == prepared.nbytes
    return compare_gguf(out, prepared)


def write_every_type(path, alignment):
    """A file of random bytes in all types of tensors, and keys of all types of values, lists of them too."""
    random, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    numbers = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
    for kind in (*numbers, "bool", "string"):
        value = {"bool": True, "string": "Grüße"}.get(kind, 7)
        getattr(writer, f"add_{kind}")(f"general.a.{kind}", value)
    writer.add_array("general.words", ["one", "two"])
    writer.add_array("general.empty_list_of_numbers", [1.5, 2.5])
    writer.add_block_count(BLOCKS)
    writer.add_array("llama.attention.head_count", list(range(BLOCKS)))
    writer.add_array("llama.feed_forward_length", [100 + index for index in range(BLOCKS)])
    writer.add_array("llama.rope.dimension_sections", list(range(BLOCKS)))  # as many as blocks by chance
    writer.add_array("llama.other", [1, 2, 3])
    kinds = [kind for kind in gguf.GGMLQuantizationType if kind in gguf.GGML_QUANT_SIZES]
    for index in range(BLOCKS):
        for kind in kinds:
            values, size = gguf.GGML_QUANT_SIZES[kind]
            data = random.integers(0, 256, (3, math.lcm(values, 32) // values * size), dtype=np.uint8)
            writer.add_tensor(f"blk.{index}.{kind.name.lower()}.weight", data, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kinds


@pytest.mark.parametrize("alignment", [32, 8, 256])
def test_every_type_of_tensor_and_of_key_is_kept_byte_for_byte(structure, tmp_path, alignment):
    kinds = write_every_type(tmp_path / "a.gguf", alignment)
    assert len(kinds) > 25
    count = cut(tmp_path / "a.gguf", structure, tmp_path / "b.gguf", '{"a": 1}')
    assert count == len(KEPT) * len(kinds) + 1
    dense, found = tensors(tmp_path / "a.gguf"), tensors(tmp_path / "b.gguf")
    for kind in kinds:
        for new, old in enumerate(KEPT):
            name = f"{kind.name.lower()}.weight"
            assert found.pop(f"blk.{new}.{name}") == dense[f"blk.{old}.{name}"]
    assert found == {"output_norm.weight": dense["output_norm.weight"]}
    before, after = fields(tmp_path / "a.gguf"), fields(tmp_path / "b.gguf")
    changed = {"llama.block_count", "llama.attention.head_count", "llama.feed_forward_length"}
    assert {name for name in after if after[name] != before.get(name)} == changed | {GGUF_MARK}
    assert [name for name in after if name != GGUF_MARK] == list(before)
    assert all(after[name][0] == before[name][0] for name in changed)
    keys = read_header(tmp_path / "b.gguf").keys
    assert keys["llama.attention.head_count"] == KEPT
    assert keys["llama.feed_forward_length"] == [100 + index for index in KEPT]
    assert keys["llama.block_count"] == len(KEPT)
    assert keys[GGUF_MARK] == '{"a": 1}'
    assert all(place.begin % alignment == 0 for place in read_header(tmp_path / "b.gguf").places.values())


def test_the_cut_file_is_the_model_with_the_blocks_bypassed(structure, tmp_path):
    path = write_gguf(TINY, tmp_path / "a.gguf")
    cut(path, structure, tmp_path / "b.gguf")
    dense, small = load_model(path), load_model(tmp_path / "b.gguf")
    expected = dict(dense.named_parameters())
    for name, value in small.named_parameters():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(KEPT[int(parts[2])])
        assert torch.equal(value, expected[".".join(parts)]), name


def test_parts_become_one_file(structure, tmp_path):
    whole = write_gguf(TINY, tmp_path / "whole.gguf")
    write_gguf(TINY, tmp_path / "m.gguf", parts=3)
    for name in ("m-00001-of-00003.gguf", "m-00003-of-00003.gguf", ""):  # any part, or the folder
        (tmp_path / "whole.gguf").unlink(missing_ok=True)
        files = open_model(str(tmp_path / name)).source.gguf_files
        assert [file.name for file in files] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    write_gguf(TINY, whole)
    cut(files, structure, tmp_path / "a.gguf")
    cut(whole, structure, tmp_path / "b.gguf")
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
    assert fields(tmp_path / "a.gguf") == fields(tmp_path / "b.gguf")


def test_parts_that_are_missing_or_of_another_file_are_said(tmp_path):
    first = write_gguf(TINY, tmp_path / "m.gguf", parts=3)
    second = tmp_path / "m-00002-of-00003.gguf"
    second.rename(tmp_path / "away")
    with pytest.raises(ModelError, match=r"m-00002-of-00003.gguf is missing"):
        open_model(first)
    (tmp_path / "m-00003-of-00003.gguf").rename(second)
    (tmp_path / "away").rename(tmp_path / "m-00003-of-00003.gguf")
    assert open_model(first).num_blocks == BLOCKS  # exchanged parts are still all parts
    (tmp_path / "m-00003-of-00003.gguf").write_bytes(second.read_bytes())
    with pytest.raises(ModelError, match="tensors, not"):
        open_model(first)


def test_parts_have_the_config_of_the_whole(tmp_path):
    """transformers looks for an output matrix in the first part alone."""
    size = json.loads((TINY / "config.json").read_text())
    head = np.ones((size["vocab_size"], size["hidden_size"]), np.float32)
    path = write_gguf(TINY, tmp_path / "m.gguf", lambda w: w.add_tensor("output.weight", head), parts=2)
    assert not open_model(path).config.tie_word_embeddings


def damaged(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["tensor", "last tensor", "key", "name"])
def test_a_written_file_that_differs_is_noticed(structure, tmp_path, what):
    path, out = write_gguf(TINY, tmp_path / "a.gguf"), tmp_path / "b.gguf"
    prepared = prepare_gguf([path], structure, REMOVED)
    write_cut(prepared, out)
    header = read_header(out)
    at = {
        "tensor": header.places["blk.3.attn_q.weight"].begin + 5,
        "last tensor": max(place.begin + place.nbytes for place in header.places.values()) - 1,
        "key": header.entries["tokenizer.ggml.tokens"].end - 1,
        "name": out.read_bytes().index(b"blk.3.attn_q") + 4,
    }[what]
    damaged(out, lambda content: content.__setitem__(at, content[at] ^ 1))
    with pytest.raises(VerificationError):
        compare_gguf(out, prepared)


def test_a_truncated_file_is_refused_before_any_work(structure, tmp_path):
    path = write_gguf(TINY, tmp_path / "a.gguf")
    size = path.stat().st_size
    for left in (size - 1, size // 2, 20_000, 3000, 11, 3):
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ModelError, match=r"is broken|letters GGUF"):
            open_model(path)


def header(architecture, blocks, **keys):
    named = {f"{architecture}.{name.replace('__', '.')}": value for name, value in keys.items()}
    return Header(architecture, named | {f"{architecture}.block_count": blocks}, ())


def changes(of, blocks, removed):
    found = cut_keys(of, Removal.of(removed, blocks))
    return {name.removeprefix(f"{of.architecture}."): value for name, value in found.items()}


WINDOW = {"attention__sliding_window": 512}
PATTERN = "attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("of", "removed", "expected"),
    [
        (header("gemma3", 18, **WINDOW), (7, 10, 13), [index not in (5, 9, 14) for index in range(15)]),
        (header("gemma3", 18, **WINDOW), tuple(range(6, 12)), None),  # a whole period: what is assumed is right
        (header("gemma3", 18), (7,), None),  # without a window there is no pattern
        (header("gemma3", 18, attention__sliding_window=0), (7,), None),
        (header("gemma2", 6), (1,), [True, True, False, True, False]),  # its window is assumed too
        (header("gemma2", 6, **WINDOW), (0, 1), None),
        (header("gpt-oss", 6, **WINDOW), (0,), [False, True, False, True, False]),
        (header("cohere2", 8, **WINDOW), (3,), [True, True, True, True, True, True, False]),
        (header("gemma3", 6, **WINDOW, attention__sliding_window_pattern=2), (1,), [True, True, False, True, False]),
        (header("gemma3", 6, **WINDOW, attention__sliding_window_pattern=2), (2, 3), None),
        (header("gemma4", 3, attention__sliding_window_pattern=[True, False, True]), (0,), [False, True]),
        (header("gemma2", 3, attention__sliding_window_pattern=[False] * 3), (0,), [False, False]),
        (header("llama", 6), (0,), None),
        (header("qwen3", 6, **WINDOW), (0,), None),
    ],
)
def test_the_pattern_of_attention_is_written_where_another_would_be_assumed(of, removed, expected):
    assert changes(of, of.own("block_count"), removed).get(PATTERN) == expected


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt_oss"])
def test_assumed_patterns_are_those_of_transformers(family):
    kinds = make_model(family, num_hidden_layers=13).config.layer_types
    found = assumed_pattern(header(family.replace("_", "-"), 13, **WINDOW), 13)
    assert found == [kind == "sliding_attention" for kind in kinds]


def test_a_file_that_looks_cut_and_assumes_a_pattern_is_noted():
    assert "no published gemma3 has 15 blocks" in pattern_note(header("gemma3", 15, **WINDOW))
    assert "the last of each 2 " in pattern_note(header("gpt-oss", 20, **WINDOW))
    named = header("gemma3", 12, **WINDOW)
    ours = Header("gemma3", named.keys | {GGUF_MARK: "{}"}, ())
    for right in (
        header("gemma3", 18, **WINDOW),
        header("gemma3", 15, **WINDOW, attention__sliding_window_pattern=[True] * 15),
        header("gemma3", 15),
        header("llama", 15),
        ours,
    ):
        assert pattern_note(right) == ""


@pytest.mark.parametrize(
    ("key", "value", "removed", "expected"),
    [
        ("leading_dense_block_count", 3, (1, 4), 2),
        ("leading_dense_block_count", 1, (0,), 0),
        ("attention.shared_kv_layers", 2, (5, 6), 1),
        ("full_attention_interval", 4, (0, 1, 2, 3), 4),
        ("full_attention_interval", 4, (0, 4), 3),
        ("expert_feed_forward_length", list(range(8)), (1,), [0, *range(2, 8)]),
        ("rope.dimension_sections", list(range(8)), (1,), list(range(8))),
    ],
)
def test_keys_that_follow(key, value, removed, expected):
    of = header("x", 8, **{key.replace(".", "__"): value})
    assert (of.keys | cut_keys(of, Removal.of(removed, 8)))[f"x.{key}"] == expected


@pytest.mark.parametrize(
    ("of", "removed", "message"),
    [
        (header("x", 8, full_attention_interval=4), (0,), "No x.full_attention_interval describes"),
        (header("x", 8, n_deepstack_layers=3), (4,), "n_deepstack_layers"),
        (header("gemma2", 46), (4,), "a gemma2 of 46 blocks differently"),
        (header("gemma3", 64), (4, 5), "a gemma3 of 62 blocks differently"),
        (header("baichuan", 32), (4,), "baichuan of 32"),
    ],
)
def test_what_no_key_can_say_is_refused(of, removed, message):
    with pytest.raises(UnsupportedModelError, match=message):
        changes(of, of.own("block_count"), removed)


def test_blocks_for_multi_token_prediction_are_left_out(structure, tmp_path):
    def add(writer):
        writer.add_uint32("llama.nextn_predict_layers", 1)
        writer.add_tensor("blk.12.nextn.eh_proj.weight", np.ones((4, 4), np.float32))

    path = write_gguf(TINY, tmp_path / "a.gguf", add)
    with pytest.raises(UnsupportedModelError, match="13 blocks, its block_count is 12"):
        prepare_gguf([path], structure, REMOVED)
    at = read_header(path).entries["llama.block_count"].end - 4
    damaged(path, lambda content: content.__setitem__(at, 13))
    prepared = prepare_gguf([path], structure, REMOVED)
    assert prepared.left_out == ("blk.12 (multi-token prediction, trained after all blocks)",)
    write_cut(prepared, tmp_path / "b.gguf")
    found = read_header(tmp_path / "b.gguf")
    assert (found.own("block_count"), found.own("nextn_predict_layers")) == (9, 0)
    assert not any("nextn" in name for name in found.tensors)


@pytest.mark.parametrize("family", ["gpt2", "gemma3n"])
def test_weights_that_would_have_to_change_are_refused(family, tmp_path):
    """GPT-2 may scale attention by a block's index; Gemma 3n has embeddings of each block in one tensor."""
    if family == "gpt2":
        model, message = make_model("gpt2", scale_attn_by_inverse_layer_idx=True), "computes with its index"
    else:
        from transformers import AutoModelForCausalLM, Gemma3nTextConfig

        small = {"vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size": 32, "intermediate_size": 48}
        sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "laurel_rank": 4}
        layers = {"num_hidden_layers": 5, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8}
        config = Gemma3nTextConfig(**small, **sizes, **layers, activation_sparsity_pattern=[0.0] * 5)
        model, message = AutoModelForCausalLM.from_config(config), "slice for each block"
    with pytest.raises(UnsupportedModelError, match=message):
        prepare_gguf([tmp_path / "not read"], Structure.of(model), (1,))


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_llama_cpp_computes_the_cut_gemma(family, monkeypatch, tmp_path):
    """The window is 8 tokens, the text has 60. The last cut leaves the pattern that is assumed, so none is written."""
    pytest.importorskip("xllamacpp", reason="needs the llama-cpp extra")
    from llama_server import LlamaServer

    size = json.loads((TINY / "config.json").read_text())["vocab_size"]
    special = {"tie_word_embeddings": True, "query_pre_attn_scalar": 8}
    model = make_model(family, vocab_size=size, num_hidden_layers=14, **special)
    path, ids = write_gemma_gguf(model, TINY, tmp_path / "a.gguf"), torch.arange(20, 80)[None] * 7 % size
    structure = Structure(open_model(path).shell)
    assert len(inspect(open_model(path))["notes"]) == 1  # no published one has 14 blocks

    def distance(file, removed):
        """Of the likeliest tokens' log-probabilities in llama.cpp from those of the model cut in memory."""
        with torch.inference_mode():
            expected = cut_model(model, removed)(ids).logits[0, -1].log_softmax(-1)
        found = LlamaServer(file, 128).likeliest(ids[0].tolist(), 20)
        return max(abs(value - expected[token].item()) for token, value in found.items())

    assert distance(path, ()) < 5e-3  # llama.cpp looks GELU up in a table of 16 bits
    for number, (removed, written) in enumerate((((1, 4, 7), True), ((0, 1, 2, 3, 4, 5), False))):
        file = tmp_path / f"{number}.gguf"
        cut(path, structure, file, '{"plan": "an extra key"}', removed)
        assert (read_header(file).own(PATTERN) is not None) == written
        assert distance(file, removed) < 5e-3
    monkeypatch.setattr(gguf_keys, "_written_pattern", lambda header, removal: None)
    cut(path, structure, tmp_path / "wrong.gguf", removed=(1, 4, 7))
    assert distance(tmp_path / "wrong.gguf", (1, 4, 7)) > 0.05
