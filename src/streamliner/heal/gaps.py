"""Where lightweight networks go: each run of removed blocks, with the kept blocks that its network replaces."""

from dataclasses import dataclass

from streamliner.errors import RemovalError


@dataclass(frozen=True)
class Gap:
    """The blocks `[start, stop)` of the dense model that become `len(places)` blocks of a network.

    The network, at `places`, ascending, learns to map the residual stream at depth `start` to that at depth `stop`.
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

    Raises RemovalError if between two runs there are fewer than `depth` kept blocks.
    """
    starts = [block for block in removed if block - 1 not in removed]
    stops = [block + 1 for block in removed if block + 1 not in removed]
    gaps: list[Gap] = []
    for start, stop in zip(starts, stops, strict=True):
        before, after = range(gaps[-1].stop if gaps else 0, start), range(stop, stop + depth)
        if len(before) >= depth:
            gaps.append(Gap(start - depth, stop, tuple(before[-depth:])))
        elif start == 0 and after.stop <= num_blocks and not set(after) & set(removed):
            gaps.append(Gap(0, after.stop, tuple(after)))
        else:
            shallower = "Use --network-depth 1, or a plan with more kept blocks between runs."
            raise RemovalError(
                f"Only {len(before)} kept blocks lie between block {start} and the run of removed blocks before it: "
                f"too few for a network of {depth}.",
                shallower if depth > 1 else "Heal with --network none --lora 16 --loss kd.",
            )
    return tuple(gaps)
