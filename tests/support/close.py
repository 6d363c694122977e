"""Compare two computations of the same numbers, which are never promised to be equal to the bit."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Fail if they differ by more than float32 rounding: `tolerance` relative to the largest value (at least 1)."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1.0))
