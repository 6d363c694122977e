"""Where lightweight networks go: each run of removed blocks, with the kept blocks that its network replaces."""

from __future__ import annotations

from dataclasses import dataclass

from streamliner.errors import RemovalError


@dataclass(frozen=True)
class Gap:
    """The blocks `[start, stop)` of the dense model that become `len(places)` blocks of a network.

    The network is trained to map the residual stream at depth `start` to that at depth `stop`.

    Attributes:
        places: the blocks whose places the network takes, ascending; all others in the gap are removed.
    """

    start: int
    stop: int
    places: tuple[int, ...]

    def __str__(self) -> str:
        blocks = ", ".join(map(str, range(self.start, self.stop)))
        return f"{self.stop - self.start} blocks become {len(self.places)}: {blocks}"


def find_gaps(removed: tuple[int, ...], num_blocks: int, depth: int = 1) -> tuple[Gap, ...]:
    """A gap for each run of removed blocks; its network takes the places of the `depth` kept blocks before the run.

    As in LLM-Streamline (arXiv 2403.19135): a transformer layer that replaces blocks l to l+n starts from block l, so
    n blocks are gone. At the start of the stack, with no block before the run, the network takes the places after it.

    Raises:
        RemovalError: between two runs there are fewer than `depth` kept blocks.
    """
    if depth < 1:
        raise RemovalError(f"A network has at least one block, not {depth}.")
    gaps: list[Gap] = []
    block = 0
    while block < num_blocks:
        if block not in removed:
            block += 1
            continue
        stop = block
        while stop in removed:
            stop += 1
        kept_before = range(gaps[-1].stop if gaps else 0, block)
        if len(kept_before) >= depth:
            gap = Gap(block - depth, stop, tuple(kept_before[-depth:]))
        elif block == 0 and all(b < num_blocks and b not in removed for b in range(stop, stop + depth)):
            gap = Gap(0, stop + depth, tuple(range(stop, stop + depth)))
        else:
            raise RemovalError(
                f"Only {len(kept_before)} kept blocks lie between block {block} and the run of removed blocks before "
                f"it: too few for a network of {depth}.",
                "Use --network-depth 1, or a plan with more kept blocks between runs."
                if depth > 1
                else "Heal with --network none --lora 16 --loss kd.",
            )
        gaps.append(gap)
        block = gap.stop
    return tuple(gaps)
