"""What the tests of evaluate share: a text, and a cache of their own."""

from __future__ import annotations

import pytest

from streamliner.text.sources import read_text


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(read_text("python-docs:test").documents)[:6000])
    return path
