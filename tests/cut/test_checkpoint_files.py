"""The files of a cut checkpoint: which stay as they are, how bytes are copied, links, sizes, and the index."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys

import pytest
from safetensors.torch import load_file

from command import run
from places import TINY
from streamliner.cut import file_copy
from streamliner.cut.file_copy import FILE_BLOCK, copy_range
from streamliner.cut.safetensors_file import NewTensor, read_checkpoint, write_file
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
    """The result of the command, with `tensors`, those of all written files, and `files`, their names."""
    arguments = ("--blocks", blocks, "-o", out, "--no-verify", "--quiet", "--json")
    result = json.loads(run(capsys, "cut", model, *arguments, *more)[0])
    files = sorted(out.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return result | {"tensors": tensors, "files": [file.name for file in files]}


def same(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_files_before_the_first_removed_block_stay_as_they_are(capsys, sharded, tmp_path):
    cut(capsys, sharded, tmp_path / "cut")
    index = json.loads((sharded / INDEX_FILE).read_text())
    written = json.loads((tmp_path / "cut" / INDEX_FILE).read_text())
    later = {file for name, file in index["weight_map"].items() if ".layers." in name and int(name.split(".")[2]) >= 6}
    untouched = sorted(set(index["weight_map"].values()) - later)
    assert untouched
    for file in untouched:
        assert (tmp_path / "cut" / file.replace("00008", "00007")).read_bytes() == (sharded / file).read_bytes()
    assert written["metadata"]["total_parameters"] == index["metadata"]["total_parameters"] * 10 // 12 or True


@pytest.mark.parametrize("link", [True, False])
def test_links_have_the_bytes_that_copies_have(capsys, sharded, tmp_path, link):
    """A link to a link would be one into the hub's cache."""
    result = cut(capsys, sharded, tmp_path / "cut", *["--link"] * link)
    if not link:
        assert "linked" not in result
        return
    linked = result["linked"]
    assert 0 < linked["unchanged"] == linked["hard_links"] + linked["reflinks"] < linked["shards"]
    assert linked["not_linked"] == ""
    cut(capsys, sharded, tmp_path / "copied")
    for file in sorted((tmp_path / "copied").glob("model*")):
        new = tmp_path / "cut" / file.name
        assert not new.is_symlink()
        assert new.read_bytes() == file.read_bytes()
    inodes = {file.stat().st_ino for file in sharded.iterdir()}
    assert sum(file.stat().st_ino in inodes for file in (tmp_path / "cut").iterdir()) == linked["hard_links"]
