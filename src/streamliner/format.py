"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "not finite"
"""A number that was none: JSON keeps null for it."""


def number(value: float | None) -> str:
    """Four digits, or all before the point: 0.5, 24.48, 10,830; beyond a million as 2.1e+24."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """A number of things: 1 round, 2 rounds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def loss(value: float | None) -> str:
    """A loss in nats, "" for none."""
    return "" if value is None else f"{value:.4f}"


def perplexity_of(value: float | None) -> str:
    """The perplexity of a loss, "" for none."""
    return "" if value is None else number(exp(value))


def exp(loss: float | None) -> float:
    """The perplexity of a loss, of those beyond all numbers the largest; nan for none."""
    return math.nan if loss is None else math.exp(min(loss, 700))


def with_error(value: float | None, error: float | None) -> str:
    """A number with its standard error, where there is one."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.4f}" + ("" if error is None or not math.isfinite(error) else f" ± {error:.4f}")


def share_with_error(value: float | None, error: float | None) -> str:
    """A share in percent with its standard error, where there is one."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.1%}" + ("" if error is None or not math.isfinite(error) else f" ± {error:.1%}")


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of paths or hub ids, as many as tell different ones apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    found = ["/".join(each[-1:]) or name for each, name in zip(parts, names, strict=True)]
    for count in range(2, max(map(len, parts), default=1) + 1):
        twice = {short for short in found if len({n for n, s in zip(names, found, strict=True) if s == short}) > 1}
        if not twice:
            break
        found = ["/".join(each[-count:]) if s in twice else s for each, s in zip(parts, found, strict=True)]
    return found
