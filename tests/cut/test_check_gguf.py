"""What is wrong with a GGUF file is found, named and mended; sound ones are left in peace."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from families import make_model
from gguf_files import write_gemma_gguf, write_gguf
from places import TINY
from streamliner.cut.check_gguf import check_gguf_file
from streamliner.cut.gguf import KeptTensor, compare_gguf, prepare_gguf, with_other_head, write_gguf as write_cut
from streamliner.cut.gguf_keys import PUBLISHED
from streamliner.cut.structure import Structure
from streamliner.model.gguf_header import read_header
from streamliner.model.session import open_model

REMOVED = (1, 4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_gguf(TINY, tmp_path_factory.mktemp("llama") / "dense.gguf")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A Gemma 3 of 6 blocks, the last of which attends to all, as a file and as a folder with random norms."""
    folder = tmp_path_factory.mktemp("gemma")
    model = make_model("gemma3", vocab_size=1024)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(-0.5, 0.5)
    model.save_pretrained(folder / "dense")
    return write_gemma_gguf(model, TINY, folder / "dense.gguf")


@pytest.fixture(autouse=True)
def _published(monkeypatch):
    """As if there were a published Gemma 3 of 6 blocks."""
    monkeypatch.setitem(PUBLISHED, "gemma3", (6,))


def tensors_of(file):
    return [KeptTensor(name, name, file, place) for name, place in read_header(file).places.items()]


def bytes_of(file):
    return {each.name: b"".join(each.pieces()) for each in tensors_of(file)}


def rewritten(file, out, tensors, **keys):
    header = read_header(file)
    write_cut(with_other_head(file, header, tensors, {f"{header.architecture}.{k}": v for k, v in keys.items()}), out)
    return out


def deleted_by_name(file, out, **keys):
    """Tensors dropped by their names: holes in the numbering."""
    kept = [each for each in tensors_of(file) if not any(f"blk.{index}." in each.name for index in REMOVED)]
    return rewritten(file, out, kept, **keys)


def cut_file(file, out, **keys):
    """The file cut as it should be, then with other keys: as tools leave them that renumber tensors alone."""
    found = prepare_gguf([file], Structure(open_model(file).shell), REMOVED)
    tensors = [replace(each, old_name=each.name) for each in found.tensors]
    header = read_header(file)
    changed = found.changed | {f"{header.architecture}.{name}": value for name, value in keys.items()}
    write_cut(with_other_head(file, header, tensors, {k: v for k, v in changed.items() if v is not None}), out)
    return out


def without(name):
    def change(file, out):
        whole = cut_file(file, out.with_name("whole.gguf"))
        return rewritten(whole, out, [each for each in tensors_of(whole) if each.name != name])

    return change


def other_shape(file, out):
    whole, changed = cut_file(file, out.with_name("whole.gguf")), []
    for each in tensors_of(whole):
        if each.name == "blk.2.ffn_up.weight":
            each = replace(each, place=replace(each.place, shape=(each.place.shape[0], each.place.shape[1] // 2)))
        changed.append(each)
    return rewritten(whole, out, changed)


def truncated(file, out):
    out.write_bytes(cut_file(file, out.with_name("whole.gguf")).read_bytes()[:-1000])
    return out


def other_order(file, out):
    whole = cut_file(file, out.with_name("whole.gguf"))
    names = {"blk.0.": "blk.1.", "blk.1.": "blk.0."}
    moved = [replace(each, name=names.get(each.name[:6], each.name[:6]) + each.name[6:]) for each in tensors_of(whole)]
    return rewritten(whole, out, moved)


FAULTS = {
    "holes": ("llama", deleted_by_name, "blk.*", "mends"),
    "holes, but counted": ("llama", lambda *files: deleted_by_name(*files, block_count=10), "blk.*", "mends"),
    "old number of blocks": ("llama", lambda *files: cut_file(*files, block_count=12), "llama.block_count", "mends"),
    "too small a number of blocks": (
        "llama",
        lambda *files: cut_file(*files, block_count=9),
        "llama.block_count",
        "mends",
    ),
    "lost tensor": ("llama", without("blk.2.ffn_up.weight"), "blk.2.ffn_up.weight", "needs dense"),
    "other shape": ("llama", other_shape, "blk.2.ffn_up.weight", "needs dense"),
    "truncated": ("llama", truncated, "", "never"),
    "blocks in another order": ("llama", other_order, "", "only dense sees it"),
    "no pattern of attention": (
        "gemma",
        lambda *files: cut_file(*files, **{"attention.sliding_window_pattern": None}),
        "sliding_window_pattern",
        "needs dense",
    ),
    "a pattern of the old length": (
        "gemma",
        lambda *files: cut_file(*files, **{"attention.sliding_window_pattern": [True] * 5 + [False]}),
        "sliding_window_pattern",
        "needs dense",
    ),
    "holes beside a pattern": ("gemma", deleted_by_name, "sliding_window_pattern", "mends"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_named_and_mended(fault, request, tmp_path):
    architecture, breaks, where, how = FAULTS[fault]
    dense = request.getfixturevalue(architecture)
    broken = breaks(dense, tmp_path / "broken.gguf")
    before = hashlib.sha256(broken.read_bytes()).digest()
    alone, beside = check_gguf_file(broken), check_gguf_file(broken, open_model(dense))
    right = cut_file(dense, tmp_path / "right.gguf")
    for found in (alone, beside) if how != "only dense sees it" else (beside,):
        assert any(where in each.where for each in found.faults), found
        if how == "mends" or (how == "needs dense" and found is beside):
            assert not found.beyond_mending, found
            out = tmp_path / f"mended-{found is alone}.gguf"
            write_cut(found.mended, out)
            compare_gguf(out, found.mended)
            assert not check_gguf_file(out, open_model(dense)).faults
            assert not check_gguf_file(out).faults
            assert found.removed == REMOVED or found is alone
            assert read_header(out).keys == read_header(right).keys
            assert bytes_of(out) == bytes_of(right)
        else:
            assert found.beyond_mending
            assert found.mended is None
    assert before == hashlib.sha256(broken.read_bytes()).digest()


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_sound_files_have_no_fault(architecture, request, tmp_path):
    dense = request.getfixturevalue(architecture)
    small = cut_file(dense, tmp_path / "small.gguf")
    for file, removed in ((dense, ()), (small, REMOVED)):
        assert not check_gguf_file(file).faults
        found = check_gguf_file(file, open_model(dense))
        assert (found.faults, found.removed, found.trained) == ((), removed, ())


def test_a_file_is_compared_with_the_folder_that_it_was_converted_from(gemma, tmp_path):
    """llama.cpp's converter drops the kinds of attention from a cut Gemma; the folder has them."""
    broken = cut_file(gemma, tmp_path / "broken.gguf", **{"attention.sliding_window_pattern": None})
    found = check_gguf_file(broken, open_model(gemma.parent / "dense"))
    assert found.removed == REMOVED
    assert [fault.where for fault in found.faults] == ["gemma3.attention.sliding_window_pattern"]
    out = tmp_path / "mended.gguf"
    write_cut(found.mended, out)
    assert not check_gguf_file(out, open_model(gemma)).faults
    assert not check_gguf_file(out, open_model(gemma.parent / "dense")).faults


def test_trained_tensors_are_no_fault(llama, tmp_path):
    whole = cut_file(llama, tmp_path / "small.gguf")
    tensors = tensors_of(whole)
    at = next(number for number, each in enumerate(tensors) if each.name == "blk.2.ffn_up.weight")
    count = tensors[at].place.nbytes // 4
    tensors[at] = replace(tensors[at], new=struct.pack(f"<{count}f", *range(count)))
    healed = rewritten(whole, tmp_path / "healed.gguf", tensors)
    found = check_gguf_file(healed, open_model(llama))
    assert (found.faults, found.removed, found.trained) == ((), REMOVED, ("blk.2.ffn_up.weight",))
