"""`-o NAME.gguf`: a GGUF file is searched, cut and verified as itself, and its plan travels."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple

import pytest

pytest.importorskip("gguf")

from command import run
from gguf_files import write_gguf
from kill import kill_when, start
from places import BFLOAT16, TINY
from streamliner.cut.gguf_keys import SIZES
from streamliner.cut.structure import Structure
from streamliner.errors import PlanError, UnsupportedModelError, VerificationError
from streamliner.model.gguf_header import read_header
from streamliner.model.load import load_model
from streamliner.model.mark import GGUF_MARK
from streamliner.model.session import open_model
from streamliner.search.plan import check_plan, read_plan
from streamliner.verbs.verify import verify

QUICK = ("--num-samples", "2", "--sequence-length", "64")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return write_gguf(TINY, tmp_path_factory.mktemp("dense") / "dense.gguf")


@pytest.fixture(scope="module")
def small(dense, tmp_path_factory):
    """The dense file without blocks 3 and 7, verified."""
    from streamliner.cli import main

    out = tmp_path_factory.mktemp("small") / "small.gguf"
    with pytest.raises(SystemExit) as ended:
        main(["cut", str(dense), "--blocks", "3,7", "-o", str(out), "--quiet"])
    assert not ended.value.code
    return out


def test_cut_says_what_it_compared(capsys, dense, tmp_path):
    out, _ = run(capsys, "cut", dense, "--blocks", "3,7", "-o", tmp_path / "a.gguf")
    assert "92 tensors are those of the dense file, byte for byte." in out
    assert "Verified in float32" in out
    out, _ = run(capsys, "cut", dense, "--blocks", "3,7", "-o", tmp_path / "b.gguf", "--no-verify")
    assert "Not verified" in out
    assert "byte for byte" not in out
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_prune_cuts_the_file_that_it_searched(capsys, dense, tmp_path):
    out, _ = run(capsys, "prune", dense, "--remove", "2", "-o", tmp_path / "small.gguf", *QUICK, "--json")
    found = json.loads(out)
    assert found["cut"]["verification"]["cached_generation"]
    assert found["cut"]["tensors_equal"] == 92
    assert (found["cut"]["blocks_after"], found["cut"]["output"]) == (10, str(tmp_path / "small.gguf"))
    assert found["cut"]["bytes_after"] == (tmp_path / "small.gguf").stat().st_size < found["cut"]["bytes_before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf", "small.gguf.run"]
    plan = read_plan(tmp_path / "small.gguf.run")
    assert read_plan(tmp_path / "small.gguf").removed == plan.removed
    assert plan.method == "sleb"


def test_a_folder_made_of_quantised_weights_is_said_to_be_larger(capsys, tmp_path):
    dense = write_gguf(TINY, tmp_path / "dense.gguf", kinds={"": "Q8_0"})
    out, said = run(capsys, "prune", dense, "--remove", "2", "-o", tmp_path / "small", *QUICK)
    assert (
        "will be a folder, whose weights may take more space than the GGUF file. -o NAME.gguf cuts the file itself."
        in " ".join(said.split())
    )
    assert "none: " in next(line for line in out.splitlines() if "bytes" in line)
    assert "Weights take more space in a folder than in the GGUF file. -o NAME.gguf cuts the file itself." in " ".join(
        out.split()
    )


def test_the_file_says_what_was_removed_from_which_model(capsys, dense, small):
    mark = json.loads(read_header(small).keys[GGUF_MARK])
    assert (mark["removed"], mark["num_blocks"], mark["model"]["name"]) == ([3, 7], 12, str(dense))
    described = open_model(small).describe()
    assert (described["removed"], described["parent"], described["blocks"]) == ([3, 7], str(dense), 10)
    assert "is right" in run(capsys, "verify", small)[0]
    assert "is no GGUF file, and a GGUF file may be quantised" in run(capsys, "verify", small, "--dense", TINY)[0]
    assert "No fault was found" in run(capsys, "verify", dense)[0]


def test_a_cut_file_is_cut_again(capsys, small, tmp_path):
    run(capsys, "cut", small, "--blocks", "0", "-o", tmp_path / "smaller.gguf")
    mark = json.loads(read_header(tmp_path / "smaller.gguf").keys[GGUF_MARK])
    assert (mark["removed"], mark["num_blocks"], mark["model"]["name"]) == ([0], 10, str(small))


def test_verify_notices_another_file(capsys, dense, small, tmp_path):
    broken = tmp_path / "broken.gguf"
    content = bytearray(small.read_bytes())
    content[read_header(small).places["blk.4.ffn_up.weight"].begin] ^= 1
    broken.write_bytes(content)
    assert "blk.4.ffn_up.weight" in run(capsys, "verify", broken, status=1)[1]
    run(capsys, "cut", dense, "--blocks", "3,8", "-o", tmp_path / "other.gguf", "--no-verify")
    with pytest.raises(VerificationError, match="differ by"):
        verify(tmp_path / "other.gguf", dense=dense, removed=(3, 7))


@pytest.mark.parametrize("way", ["file to folder", "folder to file"])
def test_a_plan_travels_between_the_formats_of_a_model(capsys, dense, tmp_path, way):
    there, here = (dense, BFLOAT16) if way == "file to folder" else (BFLOAT16, dense)
    run(capsys, "search", there, "--remove", "2", "-o", tmp_path / "run", *QUICK)
    out = tmp_path / ("out" if here == BFLOAT16 else "out.gguf")
    messages = run(capsys, "cut", here, "--plan", tmp_path / "run", "-o", out)[1]
    found = {
        "file to folder": "GGUF, mostly F32 there, bfloat16 here",
        "folder to file": "bfloat16 there, GGUF, mostly F32",
    }
    assert found[way] in " ".join(messages.split())
    assert read_plan(out).removed == read_plan(tmp_path / "run").removed
    other = tmp_path / ("out.gguf" if here == BFLOAT16 else "out")  # and the plan that the result carries
    run(capsys, "cut", there, "--plan", out, "-o", other, "--no-verify")
    assert read_plan(other).removed == read_plan(out).removed


def test_models_that_gguf_files_call_llama(small):
    """A file has no other name for Mistral."""
    plan = read_plan(small)
    model = plan.model | {"model_type": "mistral"}
    check_plan(plan, model, 12)
    with pytest.raises(PlanError, match="model_type"):
        check_plan(plan, plan.model | {"model_type": "qwen3"}, 12)


def test_a_folder_is_still_written_from_a_file(capsys, dense, tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    run(capsys, "cut", dense, "--blocks", "3", "-o", tmp_path / "folder.gguf")
    assert (tmp_path / "folder.gguf" / "model.safetensors").is_file()


def test_a_split_file_is_cut_and_its_bytes_compared(capsys, tmp_path):
    first = write_gguf(TINY, tmp_path / "m.gguf", parts=3)
    out, _ = run(capsys, "cut", first, "--blocks", "3,7", "-o", tmp_path / "small.gguf")
    assert "92 tensors are those of the dense file" in out
    assert "Logits not compared" in out
    assert len(read_header(tmp_path / "small.gguf").tensors) == 92
    assert load_model(tmp_path / "small.gguf").config.num_hidden_layers == 10
    assert "--merge" in run(capsys, "prune", first, "--remove", "1", "-o", tmp_path / "b.gguf", *QUICK, status=2)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cut", TINY, "--blocks", "3", "-o", "OUT"], "nothing is converted here"),
        (["prune", TINY, "--remove", "1", "-o", "OUT"], "nothing is converted here"),
        (["cut", "DENSE", "--blocks", "3", "-o", "DENSE", "--overwrite"], "is the model itself"),
        (["cut", "DENSE", "--blocks", "3", "-o", "LINK", "--overwrite"], "is the model itself"),
        (["cut", "DENSE", "--blocks", "3", "-o", "TAKEN", "--overwrite"], "streamliner did not write it"),
        (["cut", "DENSE", "--blocks", "3", "-o", "BROKEN", "--overwrite"], "streamliner did not write it"),
        (["cut", "DENSE", "--blocks", "3", "-o", "OURS"], "add --overwrite"),
        (["cut", "DENSE", "--blocks", "3", "-o", "nowhere/at/all.gguf"], "does not exist"),
        (["cut", "DENSE", "--blocks", "12", "-o", "OUT"], "no block 12"),
        (["cut", "HALF", "--blocks", "3", "-o", "OUT"], "is broken"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(capsys, monkeypatch, dense, small, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    files = {name: tmp_path / f"{name.lower()}.gguf" for name in ("OUT", "LINK", "TAKEN", "BROKEN", "OURS", "HALF")}
    files["LINK"].symlink_to(dense)
    shutil.copy(dense, files["TAKEN"])
    files["BROKEN"].write_bytes(b"GGUF")
    shutil.copy(small, files["OURS"])
    files["HALF"].write_bytes(dense.read_bytes()[:1_000_000])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    files |= {"DENSE": dense}
    _, err = run(
        capsys, *(files.get(each, each) for each in arguments), *(QUICK if arguments[0] == "prune" else ()), status=2
    )
    assert message in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwriting_a_file_of_ours(capsys, dense, small, tmp_path):
    out = tmp_path / "out.gguf"
    shutil.copy(small, out)
    run(capsys, "cut", dense, "--blocks", "3", "-o", out, "--overwrite", "--no-verify")
    assert read_plan(out).removed == (3,)
    assert list(tmp_path.iterdir()) == [out]


def test_a_removal_that_the_architecture_refuses_writes_nothing(capsys, monkeypatch, dense, tmp_path):
    def refuse(self, removed):
        raise UnsupportedModelError("Block 3 would not be the same block.")

    monkeypatch.setattr(Structure, "changes", refuse)
    _, err = run(capsys, "cut", dense, "--blocks", "3", "-o", tmp_path / "out.gguf", status=2)
    assert "would not be the same" in err
    assert not list(tmp_path.iterdir())


def test_a_file_of_which_no_block_can_be_removed_is_said_before_the_search(capsys, monkeypatch, dense, tmp_path):
    monkeypatch.setitem(SIZES, "llama", (12,))
    _, err = run(capsys, "prune", dense, "--remove", "1", "-o", tmp_path / "out.gguf", *QUICK, status=2)
    assert "llama.cpp computes a llama of 12 blocks differently" in err
    assert "-o NAME" in err
    assert not list(tmp_path.iterdir())


def test_a_type_that_transformers_cannot_read_is_compared_by_bytes(capsys, monkeypatch, dense, tmp_path):
    import gguf

    def refuse(*arguments):
        raise NotImplementedError("This type cannot be dequantised")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    out, _ = run(capsys, "cut", dense, "--blocks", "3", "-o", tmp_path / "out.gguf")
    assert "101 tensors are those of the dense file" in out
    assert "Logits not compared: transformers cannot load" in out


def test_a_full_disk_is_said_before_and_while_writing(capsys, monkeypatch, dense, tmp_path):
    arguments = ("cut", dense, "--blocks", "3", "-o", tmp_path / "out.gguf", "--no-verify")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
        assert "has 1 MB left" in run(capsys, *arguments, status=2)[1]

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left on device" in run(capsys, *arguments, status=1)[1]
    assert not list(tmp_path.iterdir())
    run(capsys, *arguments)


def test_a_file_that_appears_meanwhile_is_not_replaced(capsys, monkeypatch, dense, tmp_path):
    out = tmp_path / "out.gguf"
    fsync = os.fsync

    def appear(descriptor):
        out.touch()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", appear)
    _, err = run(capsys, "cut", dense, "--blocks", "3", "-o", out, "--no-verify", status=2)
    assert "it has appeared meanwhile. The result is whole, and kept in" in err
    assert out.read_bytes() == b""
    (kept,) = tmp_path.glob(".out.gguf.kept-*/out.gguf")
    assert read_plan(kept).removed == (3,)


def test_of_two_writers_one_writes(dense, small, tmp_path):
    arguments = ("cut", dense, "--blocks", "3,7", "-o", tmp_path / "out.gguf", "--no-verify", "--quiet")
    both = [start(*arguments), start(*arguments)]
    for process in both:
        process.join(120)
    assert sorted(process.exitcode for process in both) == [0, 2]
    assert (tmp_path / "out.gguf").read_bytes() == small.read_bytes()


def test_sigkill_leaves_no_file_or_the_whole_one(dense, small, tmp_path):
    out = tmp_path / "out.gguf"
    arguments = ("cut", dense, "--blocks", "3,7", "-o", out, "--quiet")
    moments = [
        (lambda: any(tmp_path.glob(".out.gguf.partial-*")), 0.0),
        (lambda: any(path.stat().st_size for path in tmp_path.glob(".out.gguf.partial-*/out.gguf")), 0.0),
        (lambda: any(path.stat().st_size for path in tmp_path.glob(".out.gguf.partial-*/out.gguf")), 0.3),
    ]
    killed = 0
    for happened, delay in moments:
        killed += kill_when(happened, delay, *arguments)
        if out.exists():
            break
        assert not any(path.is_file() for path in tmp_path.iterdir())
    assert killed >= 1
    if not out.exists():
        process = start(*arguments)
        process.join(120)
        assert process.exitcode == 0
    assert out.read_bytes() == small.read_bytes()
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_was_cut_from_a_gguf_file_is_verified_with_it_wherever_it_is(capsys, dense, tmp_path):
    run(capsys, "cut", dense, "--blocks", "3,7", "-o", tmp_path / "folder", "--no-verify")
    moved = shutil.copy(dense, tmp_path / "moved.gguf")
    found = json.loads(run(capsys, "verify", tmp_path / "folder", "--dense", moved, "--json")[0])
    assert (found["faults"], found["removed"]) == ([], [3, 7])
    assert found["verification"]["max_logit_difference"] < 1e-4
