"""Well-known public models, their config.json field by field: inspect, cut and search them as their users would."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from command import run
from public_models import PUBLIC, write_public
from streamliner.cut.names import extra_blocks

REMOVED = (5, 9)
PREFIXES = ("model.layers", "language_model.model.layers")


def streamliner(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json", "--quiet")[0])


def kept(values):
    return [value for index, value in enumerate(values) if index not in REMOVED]


def text_part(config):
    return config.get("text_config", config)


def expected_text(text):
    """The fields of the text part that a cut changes."""
    depth = text["num_hidden_layers"]
    changed = {"num_hidden_layers": depth - len(REMOVED)}
    changed |= {key: kept(text[key]) for key in ("layer_types", "no_rope_layers") if text.get(key)}
    if text.get("no_rope_layers") == []:  # Llama 4: every fourth block has no rotary embedding, where no list says so
        changed["no_rope_layers"] = kept([int((index + 1) % 4 > 0) for index in range(depth)])
    # max_window_layers counts the blocks without sliding windows, from the first.
    changed |= {key: text[key] - len(REMOVED) for key in ("max_window_layers",) if key in text}
    changed |= {key: 0 for key in ("num_nextn_predict_layers",) if key in text}
    return changed


@pytest.mark.parametrize("name", PUBLIC)
def test_inspect_cut_and_search(name, tmp_path, capsys):
    config = write_public(name, tmp_path / "model")
    depth = text_part(config)["num_hidden_layers"]
    found = json.loads(run(capsys, "inspect", tmp_path / "model", "--json")[0])
    assert found["num_blocks"] == depth
    assert found["not_removable"] == {}
    assert found["notes"] == []

    cut = streamliner(capsys, "cut", tmp_path / "model", "--blocks", "5,9", "-o", tmp_path / "cut", "--no-verify")
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    outer = {key: value for key, value in config.items() if key != "text_config" or "vision_config" not in config}
    for key, value in (outer | (expected_text(config) if "text_config" not in config else {})).items():
        assert written[key] == value, key
    text = text_part(config)
    for key, value in (text | expected_text(text)).items():
        assert text_part(written)[key] == value, key
    with safe_open(tmp_path / "cut" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(f"{prefix}.0.") for name in names))
    blocks = {int(name[len(prefix) + 1 :].split(".")[0]) for name in names if name.startswith(f"{prefix}.")}
    assert blocks == set(range(depth - 2))
    assert bool(cut["left_out"]) == bool(text.get("num_nextn_predict_layers"))

    windows = (
        "--num-samples",
        "1",
        "--sequence-length",
        "16",
        "--calibration",
        "python-docs",
        "--method",
        "streamline",
    )
    search = streamliner(capsys, "search", tmp_path / "model", "--remove", "1", *windows, "-o", tmp_path / "run")
    assert len(search["plan"]["removed"]) == 1


def test_blocks_for_multi_token_prediction_are_named():
    names = ["model.layers.0.a", "model.layers.3.a", "model.layers.2.a", "mtp.layers.0.b", "lm_head.weight"]
    assert extra_blocks(names, "model.layers", 3) == ["model.layers.3", "mtp"]
    assert extra_blocks(names[:1], "model.layers", 3) == []
