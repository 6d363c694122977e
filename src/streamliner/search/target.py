"""What the cut model must be, besides the number of blocks: small, fast, or still good enough at a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamliner.errors import RemovalError
from streamliner.search.limits import most_removable
from streamliner.search.method import Method

Removed = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """When enough is removed.

    Attributes:
        wish: what is asked for, as a noun phrase.
        blocks: the removal of this many blocks is enough, whichever they are.
        met: whether the removal of these blocks is enough.
    """

    wish: str
    blocks: int
    met: Callable[[Removed], bool]


def size_target(
    wish: str, most: int, sizes: Sequence[int], rest: int, method: Method, size: Callable[[Removed], int]
) -> Target:
    """At most `most` parameters or bytes.

    Args:
        wish: see `Target`.
        most: the limit.
        sizes: of each block.
        rest: of all that is not in blocks.
        method: that will choose blocks; those that it protects stay.
        size: of the model without some blocks, exactly: blocks may share weights.

    Raises:
        RemovalError: the dense model is that small, or no removal is enough.
    """
    total, possible = size(()), most_removable(method, len(sizes))
    if total <= most:
        raise RemovalError(f"The model has {total:,}, so it already meets {wish}.")
    ascending = sorted(sizes[method.protect_first : len(sizes) - method.protect_last])
    least = total - sum(ascending[::-1][:possible])
    if least > most:
        raise RemovalError(
            f"{wish} cannot be reached: even without all {possible} removable blocks, {least:,} are left, "
            f"{rest:,} of them outside the blocks.",
            f"Ask for {least:,} or more; protect fewer blocks, or quantise the result.",
        )
    enough = (count for count in range(1, possible) if total - sum(ascending[:count]) <= most)
    return Target(wish, next(enough, possible), lambda removed: size(removed) <= most)


def speed_target(
    wish: str, speed_up: float, seconds: float, per_block: float, method: Method, num_blocks: int
) -> Target:
    """A speed-up, from the time of the dense model and of one of its blocks, in seconds.

    Raises:
        RemovalError: no removal is enough.
    """
    possible = most_removable(method, num_blocks)
    needed = next(
        (count for count in range(1, possible + 1) if seconds >= speed_up * (seconds - count * per_block)), None
    )
    if needed is None:
        most = seconds / (seconds - possible * per_block)
        raise RemovalError(
            f"{wish} cannot be reached: even without all {possible} removable blocks it is {most:.2f}x here, because "
            f"{1 - num_blocks * per_block / seconds:.0%} of the time is spent outside the blocks.",
            f"Ask for less than {most:.2f}.",
        )
    return Target(wish, needed, lambda removed: len(removed) >= needed)
