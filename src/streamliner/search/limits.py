"""How much to remove."""

import math
import re

from streamliner.errors import RemovalError
from streamliner.search.method import Method


def check_limit(method: Method, num_blocks: int, limit: int) -> None:
    """Check that `method` may remove `limit` of `num_blocks` blocks; a RemovalError if it protects too many."""
    first, last = method.protect_first, method.protect_last
    if first < 0 or last < 0:
        raise RemovalError("The number of protected blocks cannot be negative.")
    possible = most_removable(method, num_blocks)
    if limit > possible:
        raise RemovalError(
            f"{limit} of {num_blocks} blocks cannot be removed: at most {max(possible, 0)} can, "
            f"as the first {first} and the last {last} are protected and one must stay.",
            "Remove fewer, or protect fewer with --protect-first and --protect-last.",
        )


def most_removable(method: Method, num_blocks: int) -> int:
    """How many blocks `method` may remove at most: all but the protected ones, and not the whole stack."""
    return num_blocks - max(1, method.protect_first + method.protect_last)


def parse_remove(text: str | int, num_blocks: int) -> int:
    """The number of blocks to remove: "7", or "20%" of `num_blocks`, rounded up as in SLEB.

    A RemovalError if it is not a number from 1 to `num_blocks` - 1.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", str(text).strip())
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


def parse_percentage(flag: str, text: str) -> float:
    """A limit as a percentage: "10%" -> 0.1; a RemovalError that names the `flag` if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if not match:
        raise RemovalError(f"{flag} {text} is not a percentage.", "Write for instance 10%.")
    return float(match[1]) / 100
