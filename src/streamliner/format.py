"""Numbers as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """Four digits, or all before the point: 0.5, 24.48, 10,830; beyond a million as 2.1e+24."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
