"""Numbers as people read them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Four digits, or all before the point: 0.5, 24.48, 10,830; beyond a million as 2.1e+24."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def loss(value: float | None) -> str:
    """A loss in nats, "" for none."""
    return "" if value is None else f"{value:.4f}"


def perplexity_of(value: float | None) -> str:
    """The perplexity of a loss, "" for none."""
    return "" if value is None else number(math.exp(min(value, 700)))


def with_error(value: float, error: float | None) -> str:
    """A number with its standard error, where there is one."""
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
