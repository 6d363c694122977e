"""Run a search method on a probe, up to a number of blocks or a loss."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

from streamliner.errors import MethodError, RemovalError
from streamliner.format import counted
from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Frontier, Point
from streamliner.search.limits import check_limit, most_removable
from streamliner.search.method import Method
from streamliner.search.registry import full_name
from streamliner.search.steps import Steps
from streamliner.search.target import Target

DIVERGENCE = ("calibration loss", "divergence from the dense model")
"""What the score of a method of losses is called, and what it is with the objective "kl"."""


def run_method(
    probe: Probe,
    method: Method,
    name: str,
    limit: int | None = None,
    max_perplexity_increase: float | None = None,
    *,
    target: Target | None = None,
    is_good: Callable[[tuple[int, ...]], bool] = lambda removed: True,
    steps: Steps | None = None,
) -> Frontier:
    """Run `method` until `limit` blocks are removed, a target is met, or the model has become too bad.

    The point at which it became too bad is not part of the frontier.

    Args:
        probe: measurements of the model.
        method: from `make_method`.
        name: its name, for the record.
        limit: number of blocks to remove; None for as many as the method may remove, or the target needs.
        max_perplexity_increase: of the calibration perplexity; 0.1 allows 10 %.
        target: the first point that meets it is the last.
        is_good: whether the model without these blocks is still good enough.
        steps: repairs of the model between blocks; None for none.

    Raises:
        RemovalError: `limit` is more than can be removed, no block can be removed without too much damage, or the
            target is not met.
    """
    asked = limit
    of_target, most = target.blocks if target else None, most_removable(method, probe.num_blocks)
    limit = next(each for each in (limit, of_target, most) if each is not None)
    check_limit(method, probe.num_blocks, limit)
    probe.progress.remaining = probe.num_windows
    dense, points, ended = _finite(probe.text_loss(), "the dense model").mean, list[Point](), ""
    _expect(probe, method, (), limit)
    found = steps.search(method, probe, limit) if steps else method.search(probe, limit)
    checked = map(partial(_checked, probe, limit), found)
    for point in map(partial(_with_text_loss, probe), checked):
        if ended := _too_bad(point, dense, max_perplexity_increase):
            probe.say(ended)
            break
        if point.loss is not None and not math.isfinite(point.loss):
            _finite(probe.text_loss(point.removed), f"the best model without {len(point.removed)} blocks")
        if not is_good(point.removed):
            ended = f"Without {counted(len(point.removed), 'block')} the tasks lose more accuracy than allowed."
            break
        points.append(point)
        if target and target.met(point.removed):
            break
        _expect(probe, method, point.removed, limit)
    else:
        removed = points[-1].removed if points else ()
        if not points or len(removed) < (asked or 0):
            raise _stuck(probe, removed, method)
    _check_enough(points, target)
    settings = dataclasses.asdict(method) | (steps.settings if steps else {})
    score = method.score if probe.objective == "loss" else method.score.replace(*DIVERGENCE)
    ended = " ".join(filter(None, (ended, probe.deadline.message)))
    return Frontier(full_name(name), settings, dense, tuple(points), score, probe.objective, ended)


def _too_bad(point: Point, dense: float, allowed: float | None) -> str:
    """By how much the perplexity rises if that is more than `allowed` (0.1 is 10 %); "" if it is not."""
    if allowed is None or point.loss is None or point.loss <= dense + math.log1p(allowed):
        return ""
    increase = math.expm1(point.loss - dense)
    return f"Without {counted(len(point.removed), 'block')} the perplexity rises by {increase:.1%}, more than allowed."


def _checked(probe: Probe, limit: int, point: Point) -> Point:
    """The point; a MethodError if no such blocks can be removed, as a method of the user's may yield anything."""
    wrong = ""
    if not isinstance(point, Point):
        wrong = f"{point!r}, which is no Point"
    elif len(set(point.removed)) < len(point.removed) or not set(point.removed) <= set(range(probe.num_blocks)):
        wrong = f"the blocks {point.removed}, but each must be one of 0 to {probe.num_blocks - 1}, named once"
    elif not 0 < len(point.removed) <= limit:
        wrong = f"{len(point.removed)} blocks, but it was asked for 1 to {limit}"
    if wrong:
        raise MethodError(f"The method yielded {wrong}.", "See docs/tutorials/own-method.md.")
    return point.in_plain_numbers()


def _with_text_loss(probe: Probe, point: Point) -> Point:
    """The point with the loss on text, where the method measured a divergence: perplexity is of the text alone."""
    if probe.objective == "loss" or point.loss is None:
        return point
    text = probe.text_loss(point.removed)
    return dataclasses.replace(point, loss=text.mean, standard_error=text.standard_error, divergence=point.loss)


def _check_enough(points: list[Point], target: Target | None) -> None:
    """Raise RemovalError if nothing can be removed within the limits, or less than the target needs."""
    if not points:
        raise RemovalError(
            "The removal of any block makes the model worse than allowed.",
            "Allow a larger --max-perplexity-increase or --target-accuracy-drop.",
        )
    if target and not target.met(points[-1].removed):
        raise RemovalError(
            f"{target.wish} is not reached: within the limits only {len(points[-1].removed)} blocks can be removed.",
            "Allow more damage or ask for less. What was measured is kept, so this will be fast.",
        )


def _finite(loss: Loss, of: str) -> Loss:
    """The loss; a MethodError if it is not finite on some window."""
    wrong = [number for number, value in enumerate(loss.per_window) if not math.isfinite(value)]
    if wrong:
        raise MethodError(
            f"The loss of {of} is {loss.per_window[wrong[0]]} on window {wrong[0]} of the calibration set "
            f"({len(wrong)} of {len(loss.per_window)} windows).",
            "Are numbers too large for float16? Try --dtype bfloat16 or float32. Otherwise a weight is not a number.",
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
            f"Use --remove {len(removed)}; what was measured is kept, so this will be fast.",
        )
    if not reason:
        own = "A method of your own must yield a Point for each number of blocks: docs/tutorials/own-method.md."
        return RemovalError("The method found nothing to remove.", own)
    return RemovalError(
        f"No single block of this model can be removed. {reason}",
        "Perhaps several together can: --method streamline tries intervals, --method exhaustive all sets.",
    )
