"""Where things are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SUPPORT = Path(__file__).parent
TINY = ROOT / "tests" / "fixtures" / "tiny-llama"
"""The trained fixture: a Llama of 12 blocks."""
