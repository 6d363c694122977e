"""Run a method on a probe: the frontier, and the plan chosen from it."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from streamliner.errors import RemovalError
from streamliner.measure import Probe
from streamliner.search.frontier import Frontier, Point
from streamliner.search.plan import Plan
from streamliner.search.registry import Method, check_limit


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


def search(
    probe: Probe, method: Method, name: str, limit: int | None = None, max_perplexity_increase: float | None = None
) -> Frontier:
    """Run `method` until `limit` blocks are removed, or the calibration perplexity has risen by more than allowed.

    The point that crossed the bound is not part of the frontier.

    Args:
        probe: measurements of the model.
        method: from `make_method`.
        name: its name, for the record.
        limit: at most so many blocks; None for as many as the method may remove.
        max_perplexity_increase: 0.1 allows 10 %.

    Raises:
        RemovalError: `limit` is more than can be removed, or the first block already crosses the bound.
    """
    most = probe.num_blocks - max(1, method.protect_first + method.protect_last)  # type: ignore[attr-defined]
    check_limit(method, probe.num_blocks, most if limit is None else limit)
    probe.expect(1)
    dense = probe.loss().mean
    bound = math.inf if max_perplexity_increase is None else dense + math.log1p(max_perplexity_increase)
    points: list[Point] = []
    for point in method.search(probe, most if limit is None else limit):
        if point.loss is not None and point.loss > bound:
            break
        points.append(point)
    else:
        if not points or (limit is not None and len(points[-1].removed) < limit):
            raise _stuck(probe, points[-1].removed if points else (), method)
    if not points:
        raise RemovalError(
            f"Removing any block raises perplexity by more than {max_perplexity_increase:.1%}.",
            "Allow a larger --max-perplexity-increase.",
        )
    return Frontier(name, dataclasses.asdict(method), dense, tuple(points))  # type: ignore[call-overload]


def _stuck(probe: Probe, removed: tuple[int, ...], method: Method) -> RemovalError:
    """The architecture keeps the method from going on behind `removed`."""
    candidates = range(method.protect_first, probe.num_blocks - method.protect_last)  # type: ignore[attr-defined]
    reasons = (probe.refusal((*removed, block)) for block in candidates if block not in removed)
    reason = next((reason for reason in reasons if reason), "")
    if removed:
        return RemovalError(
            f"This method finds no more than {len(removed)} blocks that can go. {reason}",
            f"Remove {len(removed)}; what was measured is kept, so the same command with another --remove is quick.",
        )
    return RemovalError(
        f"No block can go alone. {reason}",
        "Perhaps several together can: --method streamline tries runs of blocks, --method exhaustive all sets.",
    )


def make_plan(
    frontier: Frontier, model: dict[str, Any], num_blocks: int, calibration: dict[str, Any], count: int | None = None
) -> Plan:
    """The plan of the frontier's point with `count` blocks removed, or of its last point."""
    point = frontier.points[-1] if count is None else frontier.at(count)
    return Plan(
        removed=tuple(sorted(point.removed)),
        num_blocks=num_blocks,
        model=model,
        method=frontier.method,
        settings=frontier.settings,
        order=point.removed,
        score=point.score,
        dense_loss=frontier.dense_loss,
        loss=point.loss,
        calibration=calibration,
    )
