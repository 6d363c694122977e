"""How much to remove."""

from __future__ import annotations

import typing
from typing import Any

from streamliner.errors import RemovalError

if typing.TYPE_CHECKING:
    pass
import math
import re


def check_limit(method: Any, num_blocks: int, limit: int) -> None:
    """Raise RemovalError unless `method` may remove `limit` of `num_blocks` blocks."""
    first, last = method.protect_first, method.protect_last
    if first < 0 or last < 0:
        raise RemovalError("The number of protected blocks cannot be negative.")
    possible = min(num_blocks - first - last, num_blocks - 1)
    if limit > possible:
        raise RemovalError(
            f"{limit} of {num_blocks} blocks cannot be removed: at most {max(possible, 0)} can, "
            f"as the first {first} and the last {last} are protected and one must stay.",
            "Remove fewer, or protect fewer with --protect-first and --protect-last.",
        )


def parse_remove(text: str, num_blocks: int) -> int:
    """Blocks to remove: "7", or "20%" of `num_blocks`, rounded up as in SLEB.

    Raises:
        RemovalError: not a number, below 1, or all blocks and more.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if not match or (not match[2] and "." in match[1]):
        raise RemovalError(f"--remove {text} is not a number of blocks.", "Write --remove 3 or --remove 20%.")
    count = math.ceil(num_blocks * float(match[1]) / 100 - 1e-9) if match[2] else int(match[1])
    if count < 1:
        raise RemovalError(f"--remove {text} removes nothing.", "Write --remove 1 or more.")
    if count >= num_blocks:
        raise RemovalError(
            f"--remove {text} would remove {count} of {num_blocks} blocks; at least one must stay.",
            f"Remove at most {num_blocks - 1}.",
        )
    return count


def parse_increase(text: str) -> float:
    """A bound on the increase of perplexity: "10%" -> 0.1.

    Raises:
        RemovalError: not a percentage.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if not match:
        raise RemovalError(f"--max-perplexity-increase {text} is not a percentage.", "Write for instance 10%.")
    return float(match[1]) / 100
