"""The files of a cut checkpoint: which stay as they are, how bytes are copied, links, sizes, and the index."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from command import run
from places import TINY
from streamliner.cut import file_copy
from streamliner.cut.file_copy import FILE_BLOCK, copy_range
from streamliner.cut.safetensors_file import read_checkpoint, write_file
from streamliner.errors import ModelError, UserError
from streamliner.model.fingerprint import PIECE_BYTES, PIECES, SAMPLED, checkpoint_hash
from streamliner.model.load import load_model
from streamliner.model.source import INDEX_FILE, locate
from streamliner.settings import CutSettings


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The trained fixture in several files, each a link as in the hub's cache."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(TINY, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    load_model(str(TINY)).save_pretrained(folder / "saved", max_shard_size="400KB")
    (folder / "saved" / INDEX_FILE).rename(folder / "model" / INDEX_FILE)
    for file in (folder / "saved").glob("*.safetensors"):
        (folder / "model" / file.name).symlink_to(file)
    return folder / "model"


def cut(capsys, model, out, *more, blocks="6,9"):
    """The result of the command, and its tensors: name -> (file, tensor)."""
    arguments = ("--blocks", blocks, "-o", out, "--no-verify", "--quiet", "--json")
    result = json.loads(run(capsys, "cut", model, *arguments, *more)[0])
    files = sorted(out.glob("*.safetensors"))
    return result | {"tensors": {name: (file.name, t) for file in files for name, t in load_file(file).items()}}


def load_index(folder):
    return json.loads((folder / INDEX_FILE).read_text())


def same(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_files_before_the_first_removed_block_stay_as_they_are(capsys, sharded, tmp_path):
    """Whether they become links or copies; a link to a link would be one into the hub's cache."""
    copied, out = cut(capsys, sharded, tmp_path / "copied"), tmp_path / "linked"
    linked = cut(capsys, sharded, out, "--link")["linked"]
    assert "linked" not in copied
    assert 0 < linked["unchanged"] == linked["hard_links"] + linked["reflinks"] < linked["shards"]
    assert linked["not_linked"] == ""
    inodes = {file.stat().st_ino for file in sharded.iterdir()}
    assert sum(file.stat().st_ino in inodes for file in out.iterdir()) == linked["hard_links"]
    files = load_index(sharded)["weight_map"]
    later = {file for name, file in files.items() if ".layers." in name and int(name.split(".")[2]) >= 6}
    contents = {file.read_bytes() for file in (tmp_path / "copied").glob("*.safetensors")}
    for file in sorted(set(files.values())):
        assert ((sharded / file).read_bytes() in contents) == (file not in later)
    for file in (tmp_path / "copied").glob("model*"):
        assert (out / file.name).read_bytes() == file.read_bytes()
        assert not (out / file.name).is_symlink()


def test_prune_links_and_packs_as_cut_does(capsys, sharded, tmp_path):
    search = ("--remove", "1", "--method", "block-influence", "--num-samples", "1", "--sequence-length", "16")
    command = ("prune", sharded, *search, "--calibration", "python-docs", "--no-verify")
    found = json.loads(run(capsys, *command, "-o", tmp_path / "linked", "--link", "--json", "--quiet")[0])["cut"]
    assert found["linked"]["shards"] > 1
    run(capsys, *command, "-o", tmp_path / "packed", "--max-shard-size", "100MB", "--quiet")
    assert [file.name for file in (tmp_path / "packed").glob("*.safetensors")] == ["model.safetensors"]
    healed = run(capsys, *command, "-o", tmp_path / "healed", "--fold", "auto", "--link", status=2)[1]
    assert "--link does not work with --heal or --fold" in healed


def test_links_that_cannot_be_made_are_said(capsys, sharded, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(file_copy, "FICLONE", 0)
    out, _ = run(capsys, "cut", sharded, "--blocks", "6", "-o", tmp_path / "cut", "--no-verify", "--link")
    assert "not linked: Invalid cross-device link" in " ".join(out.split())


def test_the_index_follows(capsys, sharded, tmp_path):
    index, expected = load_index(sharded), {}
    for most in (None, 300_000, 100):
        out = tmp_path / str(most)
        result = cut(capsys, sharded, out, *(["--max-shard-size", most] if most else []))
        written = load_index(out)
        tensors = {name: tensor for name, (_, tensor) in result["tensors"].items()}
        assert written["weight_map"] == {name: file for name, (file, _) in result["tensors"].items()}
        assert written["metadata"].keys() == index["metadata"].keys()
        assert written["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert written["metadata"]["total_parameters"] == result["parameters_after"]
        sizes = [list(load_file(file).values()) for file in sorted(out.glob("*.safetensors"))]
        sizes = [[tensor.nbytes for tensor in each] for each in sizes]
        if most:
            assert all(sum(each) <= most or len(each) == 1 for each in sizes)
            assert all(sum(first) + second[0] > most for first, second in itertools.pairwise(sizes))
        expected.update(expected or tensors)
        assert same(tensors, expected)


def test_one_file_may_become_several_and_several_one(capsys, sharded, tmp_path):
    one = cut(capsys, TINY, tmp_path / "one")["tensors"]
    several = cut(capsys, TINY, tmp_path / "several", "--max-shard-size", "1MB")["tensors"]
    again = cut(capsys, sharded, tmp_path / "again", "--max-shard-size", "1GB")["tensors"]
    assert {file for file, _ in again.values()} == {file for file, _ in one.values()} == {"model.safetensors"}
    assert load_index(tmp_path / "several")["metadata"] == {"total_size": sum(t.nbytes for _, t in one.values())}
    for tensors in (several, again):
        assert same({name: t for name, (_, t) in tensors.items()}, {name: t for name, (_, t) in one.items()})


@pytest.mark.parametrize("size", ["5 apples", "0", "-1GB", 0.1])
def test_sizes_that_are_none(size):
    with pytest.raises(UserError, match="--max-shard-size"):
        CutSettings(blocks="3", max_shard_size=size)


def test_flags_of_folders_are_refused_for_gguf(capsys, tmp_path):
    for flag in (["--link"], ["--max-shard-size", "1GB"]):
        _, err = run(capsys, "cut", TINY, "--blocks", "3", "-o", tmp_path / "a.gguf", *flag, status=2)
        assert f"{flag[0]} is for folders of safetensors files" in " ".join(err.split())


def no_copy(*_):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


COPIES = ("in the kernel", "in small steps", "refused", "nothing", "not there")


@pytest.mark.skipif(sys.platform != "linux", reason="others copy through the process")
@pytest.mark.parametrize("how", COPIES)
def test_every_way_of_copying_gives_the_same_bytes(tmp_path, monkeypatch, how):
    content = os.urandom(3 * FILE_BLOCK + 5)
    (tmp_path / "from").write_bytes(content)
    kernel = os.copy_file_range
    if how == "not there":
        monkeypatch.delattr(os, "copy_file_range")
    elif how != "in the kernel":
        ways = {
            "in small steps": lambda source, target, count, *places: kernel(source, target, min(count, 700), *places)
        }
        monkeypatch.setattr(os, "copy_file_range", (ways | {"refused": no_copy, "nothing": lambda *_: 0})[how])
    monkeypatch.setattr(file_copy, "READ_BYTES", 1000)
    with (tmp_path / "from").open("rb", buffering=0) as source, (tmp_path / "to").open("wb", buffering=0) as target:
        target.write(b"begin")
        copy_range(source, 11, 2 * FILE_BLOCK, target)
        copy_range(source, 0, 0, target)
        copy_range(source, 5, FILE_BLOCK, target)
        with pytest.raises(ModelError, match="from ends too early"):
            copy_range(source, 3 * FILE_BLOCK, 6, target)
    wanted = b"begin" + content[11 : 11 + 2 * FILE_BLOCK] + content[5 : 5 + FILE_BLOCK] + content[3 * FILE_BLOCK :]
    assert (tmp_path / "to").read_bytes() == wanted


def test_a_disk_that_cannot_be_read_is_named(tmp_path):
    """The first page of a process's memory gives a real input/output error."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("Linux has such a file")
    (tmp_path / "from").symlink_to("/proc/self/mem")
    with (
        (tmp_path / "from").open("rb", buffering=0) as source,
        (tmp_path / "to").open("wb", buffering=0) as target,
        pytest.raises(OSError) as caught,
    ):
        copy_range(source, 0, 10, target)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "from"))


def test_kept_bytes_can_be_shared_in_blocks(tmp_path):
    """Btrfs and XFS share whole blocks that begin at the same place within a block, however long the header is."""
    names = ["first", "second", "third"]
    entries = {name: {"dtype": "U8", "shape": [FILE_BLOCK]} for name in names}
    for number, entry in enumerate(entries.values()):
        entry["data_offsets"] = [number * FILE_BLOCK, (number + 1) * FILE_BLOCK]
    header = json.dumps(entries).encode().ljust(1024)
    content = os.urandom(3 * FILE_BLOCK)
    (tmp_path / "model.safetensors").write_bytes((1024).to_bytes(8, "little") + header + content)
    (file,) = read_checkpoint(tmp_path)
    new = tmp_path / "new.safetensors"
    write_file(new, {"a much longer name": file.unchanged("second"), "x": file.unchanged("third")}, {"a": "b" * 500})
    written = new.read_bytes()
    assert written.endswith(content[FILE_BLOCK:])
    assert (len(written) - len(content)) % FILE_BLOCK == (8 + 1024) % FILE_BLOCK
    assert load_file(new)["x"].numpy().tobytes() == content[2 * FILE_BLOCK :]


def test_a_large_checkpoint_is_hashed_in_pieces(tmp_path):
    """Those of before, whole, are still known."""
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    with file.open("wb") as writer:
        writer.truncate(2 * PIECES * PIECE_BYTES)  # no blocks on the disk
    small = checkpoint_hash(locate(TINY))
    assert not small.startswith(SAMPLED)
    assert small == checkpoint_hash(locate(TINY), whole=True)
    first = checkpoint_hash(locate(tmp_path))
    assert first.startswith(SAMPLED)
    with file.open("r+b") as writer:
        writer.seek(100 * 2 * PIECE_BYTES + 5)
        writer.write(b"x")
    assert first != checkpoint_hash(locate(tmp_path))
