"""What a run depends on besides its settings: config, text, kernel, device, releases; never names or paths."""

from __future__ import annotations

import json
import shutil

import pytest

from command import run
from places import TINY
from streamliner.errors import OutputError
from streamliner.measure.probe import Probe
from streamliner.model import fingerprint as fingerprint_module
from streamliner.model.blocks import Blocks
from streamliner.model.fingerprint import fingerprint

SEARCH = ("--method", "block-influence", "--remove", "2", "--num-samples", "2", "--sequence-length", "32")
HEAL = ("--steps", "1", "--global-batch-size", "1", "--sequence-length", "32", "--validation-windows", "1")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def change_config(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in fields.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


def search(capsys, folder, tmp_path, *arguments, status=0):
    return run(
        capsys, "search", folder, *SEARCH, "--dtype", "float32", "-o", tmp_path / "run", *arguments, status=status
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_parameters": {"rope_theta": 5e5}}, "config.rope_parameters.rope_theta"),
        ({"rms_norm_eps": 1e-3}, "config.rms_norm_eps"),
        ({"hidden_act": "gelu"}, "config.hidden_act"),
    ],
)
def test_another_config_is_another_run(capsys, folder, tmp_path, fields, named):
    search(capsys, folder, tmp_path)
    change_config(folder, **fields)
    _, err = search(capsys, folder, tmp_path, status=2)
    assert named in err
    assert "--overwrite" in err
    search(capsys, folder, tmp_path, "--overwrite")


def test_another_window_shape_kernel_device_or_release_is_another_run(capsys, folder, tmp_path, monkeypatch):
    search(capsys, folder, tmp_path)
    for changed, value in (("releases", {"torch": "9.9"}), ("attention", "eager"), ("device", "cuda")):
        monkeypatch.setattr(
            "streamliner.verbs.search.fingerprint", lambda blocks, c=changed, v=value: fingerprint(blocks) | {c: v}
        )
        _, err = search(capsys, folder, tmp_path, status=2)
        assert changed in err


def test_names_and_paths_are_no_part_of_a_run(capsys, folder, tmp_path):
    """heretic 106."""
    search(capsys, folder, tmp_path)
    moved = folder.rename(tmp_path / "other")
    config = json.loads((moved / "config.json").read_text()) | {"_name_or_path": "x", "transformers_version": "5.0"}
    (moved / "config.json").write_text(json.dumps(config))
    _, err = search(capsys, moved, tmp_path)
    assert "are known already" in err


def test_a_run_of_an_earlier_release_is_checked_by_measuring(capsys, folder, tmp_path):
    search(capsys, folder, tmp_path)
    journal = tmp_path / "run" / "journal.jsonl"
    first, *rest = journal.read_text().splitlines()
    header = json.loads(first)
    for key in ("config", "attention", "device", "releases", "window_shape"):
        del header["identity"][key]
    journal.write_text("\n".join([json.dumps(header), *rest]) + "\n")
    before = journal.read_bytes()
    search(capsys, folder, tmp_path)
    assert journal.read_bytes() == before
    change_config(folder, rope_parameters={"rope_theta": 10.0})
    _, err = search(capsys, folder, tmp_path, status=2)
    assert "its losses are not those of this model here" in err


def test_another_config_is_another_healing(capsys, folder, tmp_path):
    run(capsys, "cut", folder, "--blocks", "3,4", "-o", tmp_path / "cut", "--dtype", "float32")
    arguments = ("heal", tmp_path / "cut", *HEAL, "--dtype", "float32", "-o", tmp_path / "healed", "--quiet")
    run(capsys, *arguments)
    for name in ("cut", "model"):
        change_config(tmp_path / name, rms_norm_eps=1e-3)
    run(capsys, *arguments, "--overwrite")
    shutil.rmtree(tmp_path / "healed")
    change_config(folder, rms_norm_eps=1e-2)
    _, err = run(capsys, *arguments, status=2)
    assert "config.rms_norm_eps" in err


def test_the_fingerprint_has_the_config():
    from streamliner.model.load import load_model

    one, other = (load_model(str(TINY), dtype="float32") for _ in range(2))
    assert fingerprint(Blocks(one)) == fingerprint(Blocks(other))
    other.config.rms_norm_eps = 0.5
    assert fingerprint(Blocks(one)) != fingerprint(Blocks(other))
    assert fingerprint_module.config_values(None) == {}


def test_losses_are_measured_again_on_the_same_windows(blocks, calibration):
    probe = Probe(blocks, calibration)
    probe.loss()
    probe.check_a_known_loss()
    probe._losses[()][0] += 1  # what a journal of another model says
    with pytest.raises(OutputError, match="losses are not those"):
        probe.check_a_known_loss()
