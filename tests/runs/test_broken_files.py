"""A few of the broken files of `support/fuzz.py`, which tries as many as it is told."""

from __future__ import annotations

import pytest

from fuzz import Fuzzer
from gguf_files import write_gguf
from places import TINY


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return Fuzzer(folder, write_gguf(TINY, folder / "m.gguf"))


@pytest.mark.parametrize("start", range(0, 600, 60))
def test_broken_files_are_errors_in_a_sentence(fuzzer, start):
    assert [found for seed in range(start, start + 60) if (found := fuzzer.run(seed))] == []
