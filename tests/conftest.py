from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch

from streamliner import models
from streamliner.blocks import Blocks
from streamliner.calibration import make_calibration_set

torch.set_num_threads(1)

TINY = Path(__file__).parent / "fixtures" / "tiny-llama"


@pytest.fixture(autouse=True, scope="session")
def _quiet_transformers():
    from streamliner.session import silenced_transformers

    with silenced_transformers():
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer(models.locate(str(TINY)))


@pytest.fixture
def tiny():
    """The trained fixture in float32; a fresh one for each test."""
    return models.load_model(models.locate(str(TINY)), dtype="float32")


@pytest.fixture
def blocks(tiny):
    return Blocks(tiny)


@pytest.fixture(scope="session")
def calibration(tokenizer):
    return make_calibration_set("python-docs", tokenizer, num_samples=4, sequence_length=128)
