from __future__ import annotations

import json
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


@pytest.fixture
def tasks(tmp_path):
    """A task of our own: which topic of Python is meant; two options, one much longer."""
    questions = [
        {"question": f"The {word} statement", "choices": [f" is used to {word} things.", " 1 2 3."], "gold": number % 2}
        for number, word in enumerate(("with", "for", "import", "class", "return", "raise", "while", "del"))
    ]
    (tmp_path / "tasks").mkdir()
    file = tmp_path / "tasks" / "topics.jsonl"
    file.write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "tasks" / "topics.yaml").write_text(
        f"task: topics\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    return tmp_path / "tasks"


def pytest_collection_modifyitems(items):
    """The real models first: their tests are the longest, and must not start last."""
    items.sort(key=lambda item: not item.path.name.startswith("test_real"))
