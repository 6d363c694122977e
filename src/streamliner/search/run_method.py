"""Run a search method on a probe, up to a number of blocks or a loss."""

import dataclasses
import math

from streamliner.errors import MethodError, RemovalError
from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Frontier, Point
from streamliner.search.limits import check_limit, most_removable
from streamliner.search.method import Method
from streamliner.search.registry import full_name


def run_method(
    probe: Probe, method: Method, name: str, limit: int | None = None, max_perplexity_increase: float | None = None
) -> Frontier:
    """Run `method` until `limit` blocks are removed, or the calibration perplexity has risen too far.

    The point that exceeded the allowed perplexity is not part of the frontier.

    Args:
        probe: measurements of the model.
        method: from `make_method`.
        name: its name, for the record.
        limit: number of blocks to remove; None for as many as the method may remove.
        max_perplexity_increase: 0.1 allows 10 %.

    Raises:
        RemovalError: `limit` is more than can be removed, or no block can be removed within the allowed increase.
    """
    asked = limit
    limit = most_removable(method, probe.num_blocks) if asked is None else asked
    check_limit(method, probe.num_blocks, limit)
    probe.progress.remaining = probe.num_windows
    dense = _finite(probe.loss(), "the dense model").mean
    bound = math.inf if max_perplexity_increase is None else dense + math.log1p(max_perplexity_increase)
    points: list[Point] = []
    _expect(probe, method, (), limit)
    for point in method.search(probe, limit):
        if point.loss is not None and point.loss > bound:
            break
        if point.loss is not None and not math.isfinite(point.loss):
            _finite(probe.loss(point.removed), f"the best model without {len(point.removed)} blocks")
        points.append(point)
        _expect(probe, method, point.removed, limit)
    else:
        removed = points[-1].removed if points else ()
        if not points or len(removed) < (asked or 0):
            raise _stuck(probe, removed, method)
    if not points:
        raise RemovalError(
            f"Removing any block raises perplexity by more than {max_perplexity_increase:.1%}.",
            "Allow a larger --max-perplexity-increase.",
        )
    return Frontier(full_name(name), dataclasses.asdict(method), dense, tuple(points), method.score)


def _finite(loss: Loss, of: str) -> Loss:
    """The loss; a MethodError if it is not finite on some window."""
    wrong = [number for number, value in enumerate(loss.per_window) if not math.isfinite(value)]
    if wrong:
        raise MethodError(
            f"The loss of {of} is {loss.per_window[wrong[0]]} on window {wrong[0]} of the calibration set "
            f"({len(wrong)} of {len(loss.per_window)} windows).",
            "Numbers too large for float16: try --dtype bfloat16 or float32. If it stays, a weight is not a number.",
        )
    return loss


def _expect(probe: Probe, method: Method, removed: tuple[int, ...], limit: int) -> None:
    """Set how many losses are left: as the method says, otherwise one per point."""
    losses_left = getattr(method, "losses_left", lambda probe, removed, limit: limit - len(removed))
    probe.progress.remaining = losses_left(probe, removed, limit) * probe.num_windows


def _stuck(probe: Probe, removed: tuple[int, ...], method: Method) -> RemovalError:
    """The error where the architecture does not let the method continue after `removed`."""
    candidates = range(method.protect_first, probe.num_blocks - method.protect_last)
    reasons = (probe.refusal((*removed, block)) for block in candidates if block not in removed)
    reason = next((reason for reason in reasons if reason), "")
    if removed:
        return RemovalError(
            f"This method cannot remove more than {len(removed)} blocks of this model. {reason}",
            f"Use --remove {len(removed)}; what was measured is kept, so this will be quick.",
        )
    return RemovalError(
        f"No single block of this model can be removed. {reason}",
        "Perhaps several together can: --method streamline tries intervals, --method exhaustive all sets.",
    )
