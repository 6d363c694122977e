"""Run a method on a probe: the frontier, and the plan chosen from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from streamliner.errors import RemovalError
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Frontier, Point
from streamliner.search.limits import check_limit
from streamliner.search.method import Method
from streamliner.search.plan import Plan


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
