"""What goes wrong while a checkpoint is cut: a clear error, nothing partial, and the source as it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from command import run
from kill import contents, finish, kill_when
from places import BFLOAT16
from streamliner.cut import safetensors_file
from streamliner.model.load import load_model
from streamliner.model.source import INDEX_FILE
from streamliner.runs import files as runs_files
from streamliner.verbs import cut as verb

OUT_OF_ROOM = "No space left on device"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    load_model(str(BFLOAT16)).save_pretrained(folder, max_shard_size="400KB")
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def command(model, *more):
    return ("cut", model, "--blocks", "6,9", "-o", model.parent / "out", "--no-verify", "--quiet", *more)


def state(folder):
    """The bytes of all files in a folder and below."""
    return {
        file.relative_to(folder): hashlib.sha256(file.read_bytes()).digest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def failing(number, text, place):
    def fail(*_, **__):
        raise OSError(number, text, str(place))

    return fail


def edit_index(change):
    def damage(model):
        index = json.loads((model / INDEX_FILE).read_text())
        change(index["weight_map"], model)
        (model / INDEX_FILE).write_text(json.dumps(index))

    return damage


def leave(weight_map, model):
    shutil.copy(model / next(iter(weight_map.values())), model.parent / "elsewhere.safetensors")
    weight_map[next(iter(weight_map))] = "../elsewhere.safetensors"


def lose(weight_map, model):
    (model / weight_map["model.layers.7.mlp.up_proj.weight"]).unlink()


def shorten(model):
    file = sorted(model.glob("*.safetensors"))[4]
    os.truncate(file, file.stat().st_size - 10)


def full(monkeypatch):
    monkeypatch.setattr(safetensors_file, "copy_range", failing(errno.ENOSPC, OUT_OF_ROOM, "out"))


def full_at_the_end(monkeypatch):
    """Some disks notice only then."""
    monkeypatch.setattr(runs_files.os, "fsync", failing(errno.ENOSPC, OUT_OF_ROOM, None))


def unreadable(monkeypatch):
    monkeypatch.setattr(safetensors_file, "copy_range", failing(errno.EIO, "Input/output error", "model-3"))


def ends_meanwhile(monkeypatch):
    """After the headers were read."""
    real = verb.write_checkpoint

    def write(cut, *arguments, **more):
        shorten(cut.folder)
        return real(cut, *arguments, **more)

    monkeypatch.setattr(verb, "write_checkpoint", write)


DAMAGES = {
    "a shard is missing": (edit_index(lose), "does not exist"),
    "a shard elsewhere": (edit_index(leave), "outside its folder"),
    "a truncated shard": (shorten, "is broken"),
}
FAULTS = {
    "full disk": (full, OUT_OF_ROOM, 1),
    "full disk, seen late": (full_at_the_end, OUT_OF_ROOM, 1),
    "read error": (unreadable, "Input/output error: model-3", 1),
    "a shard that gets shorter": (ends_meanwhile, "ends too early", 2),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoints(capsys, model, name):
    damage, message = DAMAGES[name]
    damage(model)
    before = state(model.parent)
    _, err = run(capsys, *command(model), status=2)
    assert message in " ".join(err.split())
    assert state(model.parent) == before


@pytest.mark.parametrize("name", FAULTS)
def test_faults_while_writing(capsys, model, monkeypatch, name):
    fault, message, status = FAULTS[name]
    before = state(model.parent)
    with monkeypatch.context() as patch:
        fault(patch)
        _, err = run(capsys, *command(model), status=status)
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    after = state(model.parent)
    assert after.keys() == before.keys()
    if fault is not ends_meanwhile:
        assert after == before
        run(capsys, *command(model))


def test_too_little_room_is_said_before_any_byte_is_written(capsys, model, monkeypatch):
    """And `--link` needs less of it."""
    monkeypatch.setattr(verb, "write_checkpoint", None)
    free = shutil.disk_usage(model)
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=weights // 2))
    before = state(model.parent)
    _, err = run(capsys, *command(model), status=2)
    found = " ".join(err.split())
    assert f"out needs 2.23 MB, and the disk of {model.parent} has {weights / 2e6:.3g} MB left." in found
    assert "another disk with -o" in found
    assert state(model.parent) == before
    with pytest.raises(TypeError):  # it gets to writing
        run(capsys, *command(model, "--link"))


def test_names_of_tensors_are_no_paths(capsys, model):
    file = sorted(model.glob("*.safetensors"))[0]
    names = ["../../escape", "/tmp/escape", "model.layers.0.../../x"]
    tensors = load_file(file)
    extra = {name: tensors["model.embed_tokens.weight"][:1].clone() for name in names}
    save_file(tensors | extra, file, {"format": "pt"})
    edit_index(lambda weight_map, _: weight_map.update(dict.fromkeys(names, file.name)))(model)
    before = state(model)
    run(capsys, *command(model))
    out = model.parent / "out"
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "out"]
    assert all(path.parent == out for path in out.rglob("*"))
    assert set(names) <= set(json.loads((out / INDEX_FILE).read_text())["weight_map"])
    assert state(model) == before
    assert not (model.parent.parent.parent / "escape").exists()


def test_two_writers_of_one_checkpoint(capsys, model, monkeypatch):
    """The first to end has the place; the other result is whole and kept, and the error says where."""
    real, before = verb.write_checkpoint, state(model)

    def write(*arguments, **more):
        monkeypatch.setattr(verb, "write_checkpoint", real)
        found = real(*arguments, **more)
        run(capsys, *command(model))
        return found

    monkeypatch.setattr(verb, "write_checkpoint", write)
    _, err = run(capsys, *command(model), status=2)
    kept = Path("".join(err.split("kept in ")[1].split("Move")[0].split()).rstrip("."))
    assert "it has appeared meanwhile" in " ".join(err.split())
    assert contents(kept) == contents(model.parent / "out")
    assert state(model) == before


def test_sigkill(saved, tmp_path):
    """At moments of the writing; `benchmarks/cut.py --kill` takes as many as it is told."""
    before, moments = state(saved), random.Random(0)
    finish("cut", saved, "--blocks", "6,9", "-o", tmp_path / "expected", "--no-verify", "--quiet", "--link")
    expected = contents(tmp_path / "expected")
    happened = [
        lambda: any(tmp_path.glob(".out.*")),
        lambda: any(tmp_path.glob(".out.partial-*/model-00003*")),
        lambda: any(tmp_path.glob(".out.partial-*/config.json")),
    ]
    arguments = ("cut", saved, "--blocks", "6,9", "-o", tmp_path / "out", "--no-verify", "--quiet", "--link")
    killed = 0
    for moment in happened:
        killed += kill_when(moment, moments.random() / 200, *arguments)
        assert state(saved) == before
        if (tmp_path / "out").exists():
            assert contents(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "out")
    assert killed
    finish(*arguments)
    assert contents(tmp_path / "out") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]
