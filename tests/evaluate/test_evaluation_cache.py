"""What was measured before is reused, and only that."""

from __future__ import annotations

import json
import shutil

import torch

from command import run
from places import TINY
from streamliner.model.fingerprint import weights_hash


def test_a_model_is_measured_once(capsys, text, tmp_path):
    arguments = ["--perplexity", text, "--sequence-length", "64", "--num-samples", "2", "--dtype", "float32"]
    first, err = run(capsys, "evaluate", TINY, *arguments, "--json", "-o", tmp_path / "evaluation.json")
    assert "from the cache" not in err
    again, err = run(capsys, "evaluate", TINY, *arguments, "--json")
    assert "perplexity on" in err
    assert "from the cache" in err
    assert json.loads(first) == json.loads(again)
    assert "from the cache" not in run(capsys, "evaluate", TINY, *arguments, "--no-cache")[1]
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["models"] == json.loads(first)["models"]
    assert written["versions"]["torch"] == torch.__version__


def test_the_cache_is_of_the_same_windows_and_config(capsys, text, tmp_path, monkeypatch):
    """Without a BOS, two windows hold the same numbers as one that is twice as long; a config counts, too."""
    monkeypatch.setattr("streamliner.text.windows.prefix_tokens", lambda tokenizer: [])

    def measured(folder, window, count):
        shape = ["--sequence-length", window, "--num-samples", count]
        result = json.loads(run(capsys, "evaluate", folder, "--perplexity", text, *shape, "--json")[0])
        return result["models"][0]["perplexity"][0]["window_losses"]

    assert [len(measured(TINY, window, count)) for window, count in ((64, 4), (128, 2))] == [4, 2]
    shutil.copytree(TINY, tmp_path / "other")
    config = json.loads((TINY / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert measured(tmp_path / "other", 64, 4) != measured(TINY, 64, 4)


def test_one_changed_weight_tells_models_apart(tiny):
    before = weights_hash(tiny)
    weight = tiny.model.layers[5].mlp.up_proj.weight.data
    kept = weight[7, 11].item()
    weight[7, 11] += 0.001
    assert weights_hash(tiny) != before
    weight[7, 11] = kept
    assert weights_hash(tiny) == before


def test_weights_are_told_apart_by_saved_buffers_too():
    """Some families keep a scale of each layer in a buffer; buffers that are not saved follow from the config."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("scale", torch.ones(1))
    model.register_buffer("table", torch.ones(1), persistent=False)
    before = weights_hash(model)
    model.table.fill_(2)
    assert weights_hash(model) == before
    model.scale.fill_(2)
    assert weights_hash(model) != before
