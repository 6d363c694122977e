from __future__ import annotations

import os

from places import TINY
from streamliner.model.load import load_model, load_tokenizer
from streamliner.model.source import locate

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


import pytest
import torch

from streamliner.model.blocks import Blocks
from streamliner.text.windows import calibration_set

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # tiny models are ten times faster with one


@pytest.fixture(autouse=True, scope="session")
def _quiet_transformers():
    from streamliner.model.load import silenced_transformers

    with silenced_transformers():
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(locate(str(TINY)))


@pytest.fixture
def tiny():
    """The trained fixture in float32; a fresh one for each test."""
    return load_model(locate(str(TINY)), dtype="float32")


@pytest.fixture
def blocks(tiny):
    return Blocks(tiny)


@pytest.fixture(scope="session")
def calibration(tokenizer):
    return calibration_set("python-docs", tokenizer, num_samples=4, sequence_length=128)


def pytest_collection_modifyitems(items):
    """The real models first: their tests are the longest, and must not start last."""
    items.sort(key=lambda item: item.path.name != "test_real.py")
