"""Where lightweight networks go: a plan's runs of removed blocks, each with the kept blocks that a network replaces."""

from __future__ import annotations

from dataclasses import dataclass

from streamliner.errors import RemovalError


@dataclass(frozen=True)
class Gap:
    """Blocks `[start, stop)` of the dense model that become `len(places)` of a network.

    The network is trained so that from the residual stream at depth `start` it makes that at depth `stop`.

    Attributes:
        places: blocks whose places the network takes, ascending; all others in the gap are removed.
    """

    start: int
    stop: int
    places: tuple[int, ...]

    def __str__(self) -> str:
        count, left = self.stop - self.start, len(self.places)
        blocks = ", ".join(map(str, range(self.start, self.stop)))
        return f"{count} blocks become {left}: {blocks}"


def find_gaps(removed: tuple[int, ...], num_blocks: int, depth: int = 1) -> tuple[Gap, ...]:
    """A gap for each run of removed blocks; its network takes the places of the `depth` kept blocks before the run.

    As in LLM-Streamline (arXiv 2403.19135): a transformer layer that replaces blocks l to l+n starts from block l, and
    n blocks are gone. At the start of the stack, where no block is before the run, the blocks after it serve.

    Raises:
        RemovalError: between two runs there are fewer kept blocks than `depth`.
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
                f"Only {len(kept_before)} kept blocks lie before block {block} and behind the run of removed blocks "
                f"before it: too few for a network of {depth}.",
                "Use --network-depth 1, or a plan whose runs lie further apart." if depth > 1 else "Heal with --lora.",
            )
        gaps.append(gap)
        block = gap.stop
    return tuple(gaps)
