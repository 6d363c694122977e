"""The calibration set: what a search measures a model on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NUM_SAMPLES, SEQUENCE_LENGTH = 128, 2048
"""SLEB's calibration set (arXiv 2402.09025, section 4.1)."""
FEW_SAMPLES, SHORT_LENGTH = 16, 256
"""The default without a GPU: a 64th of SLEB's tokens, so that a small model takes minutes and not hours."""

COUNTED = "counted_tokens"
"""The key of a provenance, where only answers count, for how many tokens do."""


def usual_windows(*, slow: bool, context: int) -> tuple[int, int]:
    """Number and tokens of the windows of a search by default, for a slow device and a model's longest text."""
    number, length = (FEW_SAMPLES, SHORT_LENGTH) if slow else (NUM_SAMPLES, SEQUENCE_LENGTH)
    return number, min(length, context)


@dataclass(frozen=True)
class CalibrationSet:
    """Windows of tokens on which a model is measured.

    Attributes:
        windows: token ids, (windows, tokens); each begins with a BOS if the tokenizer adds one. Where only answers
            count, all other tokens are stored as ~id (`text/chat.py`).
        provenance: source and its hash, how the windows were chosen, and how many tokens there are.
    """

    windows: Tensor
    provenance: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return self.windows.numel()

    def __str__(self) -> str:
        count, length = self.windows.shape
        answers = self.provenance.get(COUNTED)
        only = "" if answers is None else f", {answers} of them in answers"
        source = self.provenance.get("source", "tokens")
        return f"{source}: {count} windows of {length} tokens, {self.num_tokens} in all{only}"

    __repr__ = __str__
