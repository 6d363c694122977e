"""transformers is given a quick reader of GGUF files: what it reads is what the reader of the gguf library reads."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("gguf")

import gguf

from gguf_files import write_gguf
from places import TINY
from streamliner.errors import ModelError
from streamliner.model.compat import quick_gguf
from streamliner.model.gguf_header import read_header
from streamliner.model.gguf_reader import TOKENS, QuickReader
from streamliner.model.load import load_model, load_tokenizer


def every_kind(writer):
    """Keys of all types of values, with tensors in several types."""
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"general.{kind}", 7)
    writer.add_float32("general.float32", 0.1)
    writer.add_float64("general.float64", 0.1)
    writer.add_bool("general.bool", False)
    writer.add_string("general.string", "Grüße")
    writer.add_array("general.texts", ["one", "zwei"])
    writer.add_array("general.numbers", [1, 2, 3])
    writer.add_array("general.fractions", [0.5])
    writer.add_array("general.booleans", [True, False])


def values_of(field):
    from transformers.integrations.ggml import _gguf_parse_value

    return [_gguf_parse_value(field.parts[index], field.types) for index in field.data]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_gguf(TINY, tmp_path_factory.mktemp("gguf") / "tiny.gguf", every_kind)


def test_it_reads_what_the_library_reads(path):
    quick, own = QuickReader(path), gguf.GGUFReader(path)
    wanted = {name: field for name, field in own.fields.items() if not name.startswith("GGUF.")}
    lists = {name for name in wanted if name.startswith("tokenizer.") and wanted[name].types[0] == 9}
    assert quick.fields.keys() == wanted.keys() - lists | {TOKENS}
    for name in quick.fields.keys() - {TOKENS}:
        assert values_of(quick.fields[name]) == values_of(wanted[name]), name
    assert len(values_of(quick.fields[TOKENS])) == len(wanted[TOKENS].data)
    assert {name: read_header(path).lengths[name] for name in lists} == {n: len(wanted[n].data) for n in lists}
    for here, there in zip(quick.tensors, own.tensors, strict=True):
        assert (here.name, here.tensor_type, here.data.shape) == (there.name, there.tensor_type, there.data.shape)
        assert here.data.tobytes() == there.data.tobytes()


def test_tensors_of_all_types_are_those_of_the_library(tmp_path):
    kinds = [kind for kind in gguf.GGMLQuantizationType if kind.name in ("F32", "F16", "BF16", "Q4_1", "Q8_0", "Q6_K")]
    writer = gguf.GGUFWriter(tmp_path / "types.gguf", "llama")
    for kind in kinds:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        data = torch.randint(256, (3, 512 // values * size), generator=torch.Generator().manual_seed(0))
        writer.add_tensor(f"{kind.name}.weight", data.to(torch.uint8).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quick, own = (reader(tmp_path / "types.gguf").tensors for reader in (QuickReader, gguf.GGUFReader))
    for here, there in zip(quick, own, strict=True):
        assert (here.name, here.tensor_type) == (there.name, there.tensor_type)
        assert (here.data.dtype, here.data.shape) == (there.data.dtype, there.data.shape)
        assert here.data.tobytes() == there.data.tobytes()


def test_config_and_tokenizer_are_those_of_transformers_alone(path):
    from transformers import AutoConfig, AutoTokenizer

    named = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with quick_gguf():
        quick = AutoConfig.from_pretrained(**named)
    assert quick.to_dict() == AutoConfig.from_pretrained(**named).to_dict()
    text = "In the beginning was Größe."
    assert load_tokenizer(path)(text) == AutoTokenizer.from_pretrained(**named)(text)


def test_a_file_of_the_same_name_in_the_current_folder_is_another_one(path, tmp_path, monkeypatch):
    """transformers would load its weights."""
    monkeypatch.chdir(tmp_path)
    write_gguf(TINY, tmp_path / path.name, kinds={"": "Q8_0"})
    here, there = (load_model(each).get_parameter("model.layers.0.mlp.up_proj.weight") for each in (path.name, path))
    assert not torch.equal(here, there)  # rounded here alone


def test_the_reader_of_the_library_is_there_again_afterwards():
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with quick_gguf():
        assert gguf.GGUFReader is QuickReader
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.parametrize("what", ["key", "tensor"])
def test_a_name_that_is_there_twice_is_refused(path, tmp_path, what):
    """As the library refuses it: which of the two is meant?"""
    old, new = (
        (b"general.int16", b"general.uint8") if what == "key" else (b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight")
    )
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    (tmp_path / "twice.gguf").write_bytes(data.replace(old, new))
    with pytest.raises(ModelError, match=f"it has the {what} {new.decode()} twice"):
        read_header(tmp_path / "twice.gguf")
