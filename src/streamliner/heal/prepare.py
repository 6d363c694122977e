"""Prepare a healing: everything that can be checked before there is a plan and before weights are loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from streamliner.heal.accelerator import check_division, find_trackers
from streamliner.heal.adapters import check_peft
from streamliner.heal.checks import check_healable
from streamliner.heal.objective import Objective
from streamliner.heal.schedule import count_steps
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter
from streamliner.settings import HealSettings
from streamliner.text.stream import PRESETS, TrainingText
from streamliner.text.windows import window_length

THAT_MATTER = (
    *("network", "network_depth", "init", "residual", "top_k", "network_input", "lora", "sequence_length"),
    *("validation_windows", "learning_rate", "min_learning_rate", "warmup", "weight_decay", "clip"),
    *("mixed_precision", "validations", "seed"),
)
"""Settings that a run cannot change when it continues."""


@dataclass(frozen=True)
class Prepared:
    """A healing that can start.

    Attributes:
        settings: with the text that is used.
        text: the training text, at its beginning.
        steps: optimiser steps in all.
    """

    settings: HealSettings
    text: TrainingText
    steps: int

    def describe(self, objective: Objective) -> list[str]:
        """What will be trained, in lines for the user."""
        settings = self.settings
        trainable = sum(parameter.numel() for parameter in objective.trainable().values())
        tokens = self.steps * settings.global_batch_size * self.text.sequence_length
        losses = " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in settings.losses.items())
        return [f"{gap}." for gap in objective.graft.gaps] + [
            f"Training {trainable:,} parameters with loss {losses}: {self.steps} steps of "
            f"{settings.global_batch_size} windows of {self.text.sequence_length} tokens, {tokens:,} tokens in all; "
            f"{len(self.text.validation)} windows held out."
        ]


def prepare_healing(dense: Session, settings: HealSettings, reporter: Reporter) -> Prepared:
    """Check settings, model and text, and read the first windows of the text.

    Raises:
        UserError: the model cannot be healed with these settings.
    """
    one_device = dense.settings.device != "auto" and not dense.settings.offload
    check_healable(dense.source.name, dense.shell, dense.config, one_device=one_device)
    if settings.lora:
        check_peft()
    check_division(settings, dense.ranks.size)
    find_trackers(settings)
    data: dict[str, float] = {}
    for name, weight in settings.texts or _default_text(dense, reporter):
        for source, share in PRESETS.get(name, ((name, 1.0),)):
            data[source] = data.get(source, 0.0) + share * weight
    settings = dataclasses.replace(settings, data=data)
    text = TrainingText(
        settings.texts,
        dense.tokenizer(),
        sequence_length=window_length(dense, settings.sequence_length),
        validation_windows=settings.validation_windows,
        seed=settings.seed,
    )
    return Prepared(settings, text, count_steps(settings, text))


def identity_of(settings: HealSettings) -> dict[str, Any]:
    """The settings that must be the same when a run continues, under the names that all releases gave them."""
    return {name: getattr(settings, name) for name in THAT_MATTER} | {
        "loss": settings.losses,
        "data": [list(pair) for pair in settings.texts],
        "batch_size": settings.global_batch_size,
    }


def record_of(settings: HealSettings) -> dict[str, Any]:
    """All settings of the training as a JSON value."""
    free = {name: getattr(settings, name) for name in ("steps", "epochs", "micro_batch", "save_every")}
    budget = None if settings.tokens is None else settings.num_tokens
    return identity_of(settings) | free | {"tokens": budget, "track": list(settings.trackers)}


def _default_text(dense: Session, reporter: Reporter) -> tuple[tuple[str, float], ...]:
    if dense.source.kind == "hub":
        return (("slimpajama", 1.0),)
    reporter.say("Training on python-docs, a small text that needs no network. Name your own text with --data.")
    return (("python-docs", 1.0),)
