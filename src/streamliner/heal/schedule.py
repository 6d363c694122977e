"""When things happen in a training run: how many steps, at which learning rate, when to validate and when to save."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamliner.errors import HealingError

if TYPE_CHECKING:
    import torch

    from streamliner.settings import HealSettings
    from streamliner.text.stream import TrainingText

SAVE_SECONDS, SAVE_SHARE = 60.0, 0.05
"""Without --save-every: at most one save a minute, and at most this share of the time is spent on saving."""


def count_steps(settings: HealSettings, text: TrainingText) -> int:
    """Optimiser steps of the budget.

    Raises:
        HealingError: it is less than one.
    """
    batch = settings.global_batch_size
    if settings.steps is not None:
        steps = settings.steps
    elif settings.epochs is not None:
        steps = round(settings.epochs * text.windows_in_a_pass()) // batch
    else:
        steps = settings.num_tokens // (batch * text.sequence_length)
    if steps < 1:
        raise HealingError(
            f"The budget is less than one step of {batch * text.sequence_length:,} tokens.",
            "Give more --tokens, or a smaller --global-batch-size or --sequence-length.",
        )
    return steps


def learning_rates(optimiser: torch.optim.Optimizer, settings: HealSettings, steps: int) -> Callable[[int], float]:
    """The learning rate at step 1 to `steps`: warm-up, then a cosine that reaches the minimum at the last step."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimiser,
        num_warmup_steps=max(1, round(settings.warmup * steps)),
        num_training_steps=steps,
        min_lr=min(settings.min_learning_rate, settings.learning_rate),
    )
    return lambda step: settings.learning_rate * schedule.lr_lambdas[0](step)


def validation_steps(settings: HealSettings, steps: int) -> set[int]:
    """The steps after which to validate: 0, evenly through the run, and the last."""
    return {round(steps * part / settings.validations) for part in range(settings.validations + 1)} | {steps}


class SaveClock:
    """When to save: after every `every` steps, or by SAVE_SECONDS and SAVE_SHARE if it is None."""

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._last, self._cost = time.monotonic(), 0.0

    def is_time(self, step: int) -> bool:
        """Whether to save after this step."""
        if self._every is not None:
            return step % self._every == 0
        return time.monotonic() - self._last >= max(SAVE_SECONDS, self._cost / SAVE_SHARE)

    def run(self, save: Callable[[], None]) -> None:
        """Save, and note how long that takes."""
        start = time.monotonic()
        save()
        self._last = time.monotonic()
        self._cost = self._last - start
