"""The training loop: AdamW, a cosine schedule, validation, and a state that survives a kill."""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from streamliner.errors import HealingError
from streamliner.heal.accelerator import wrap
from streamliner.heal.objective import Objective, reaches_all
from streamliner.heal.range_test import FACTORS, range_test, steps_of_range_test
from streamliner.heal.state import BEST, HISTORY, MOMENTS, STATE, Progress, load_tensors, save_tensors
from streamliner.heal_settings import HealSettings
from streamliner.runs.delayed_interrupt import delayed_interrupt
from streamliner.runs.files import append_json_line, read_json_lines, write_text
from streamliner.text.chat import counted
from streamliner.text.stream import TrainingText

BETAS = (0.9, 0.95)
"""AdamW's, those of LLM-Streamline's authors."""
SAVE_SECONDS, SAVE_SHARE = 60.0, 0.05
"""Without --save-every: at most one save a minute, and at most this share of the time is spent on saving."""


@dataclass(frozen=True)
class Prepared:
    """A healing that can start: settings with the text that is used, this text at its beginning, optimiser steps."""

    settings: HealSettings
    text: TrainingText
    steps: int


@dataclass(frozen=True)
class Trained:
    """The result of a training run: the validation losses of its states, of which the best was kept.

    Half precision could not use `skipped` steps; `passes` is how often each text was read to its end; `learning_rate`
    is the peak.
    """

    steps: int
    tokens: int
    best_step: int
    best_loss: float
    first_loss: float
    last_loss: float
    skipped: int
    passes: dict[str, int]
    learning_rate: float


class Trainer:
    """Trains what is trainable in an objective. With the state of a killed run in `folder`, it continues that run.

    On a CPU a run that was killed ends with the same bits as one that was not.
    """

    def __init__(self, objective: Objective, prepared: Prepared, accelerator: Any, folder: Path) -> None:
        settings, text, steps = prepared.settings, prepared.text, prepared.steps
        self.progress = Progress()
        self._settings, self._text, self._steps = settings, text, steps
        self._accelerator, self._folder = accelerator, folder
        self._tokens_of_a_step = settings.batch_windows * text.sequence_length
        self._is_first = accelerator.process_index == 0
        self._validation = text.held_out.to(objective.graft.blocks.device)
        if accelerator.num_processes > 1 and not reaches_all(objective):
            # Without it processes wait for the gradients of experts that no token chose, and of unused attention.
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._trainable = objective.trainable()
        self._optimiser = self._make_optimiser(settings.learning_rate)
        self._objective, self._wrapped_optimiser = wrap(accelerator, objective, self._optimiser)
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self._restore()
        self._share_of_peak = self._schedule()

    def run(self, on_row: Callable[[dict[str, Any]], None]) -> Trained:
        """Train to the end, and leave the objective in its best state. `on_row` gets each step's row of the history.

        Raises HealingError if a loss is not finite.
        """
        if self.progress.step == 0:
            self._add_row({"step": 0, "tokens": 0, "loss": None, "lr": 0.0, "validation": self.validate()}, on_row)
            self.save()
        evenly = self._settings.validations
        validate_after = {round(self._steps * part / evenly) for part in range(evenly + 1)} | {self._steps}
        with delayed_interrupt(enabled=self._accelerator.num_processes == 1) as asked:
            while self.progress.step < self._steps:
                row, save = self.step()
                if self.progress.step in validate_after:
                    row["validation"] = self.validate()
                self._accelerator.log({key: value for key, value in row.items() if value is not None}, step=row["step"])
                self._add_row(row, on_row)
                stop = asked.is_set()
                if save or stop:
                    self.save()
                if stop:
                    break
        if self.progress.best_loss is not None:
            best, _ = load_tensors(self._folder / BEST)
            for name, parameter in self._trainable.items():
                parameter.data.copy_(best[name])
        rows = read_json_lines(self._folder / HISTORY)
        losses = [row["validation"] for row in rows if row.get("validation") is not None] or [math.nan]
        progress = self.progress
        return Trained(
            steps=self._steps,
            tokens=self._steps * self._tokens_of_a_step,
            best_step=progress.step if progress.best_step is None else progress.best_step,
            best_loss=math.nan if progress.best_loss is None else progress.best_loss,
            first_loss=losses[0],
            last_loss=losses[-1],
            skipped=progress.skipped,
            passes=self._text.passes,
            learning_rate=self.peak,
        )

    def find_learning_rate(self) -> dict[float, float]:
        """Try some rates for a few steps each (`heal/range_test.py`), and take that with the least validation loss.

        Returns the validation loss of each rate, the one of no step as that of rate 0. Weights and text stay as they
        are.
        """
        position = self._text.state()

        def gradients(step: int) -> None:
            if step == 0:
                self._text.load(*position)
            self._accumulate_gradients()
            self._accelerator.clip_grad_norm_(list(self._trainable.values()), self._settings.clip)

        rates = [self._settings.learning_rate * factor for factor in FACTORS]
        steps = steps_of_range_test(self._steps)
        found = {0.0: self._validation_loss()}
        found |= range_test(self._trainable, rates, self._make_optimiser, gradients, self._validation_loss, steps)
        self._text.load(*position)
        self.progress.learning_rate = min(rates, key=lambda rate: found[rate])
        self._share_of_peak = self._schedule()
        return found

    def step(self) -> tuple[dict[str, Any], bool]:
        """One optimiser step; returns its row of the history, and whether to save after it."""
        rate = self.peak * self._share_of_peak(self.progress.step + 1)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        losses, save = self._over_processes(self._accumulate_gradients())
        if not math.isfinite(losses["loss"]):
            raise HealingError(
                f"The loss of step {self.progress.step + 1} is {losses['loss']}.",
                "Try a smaller --learning-rate, or --mixed-precision bf16 instead of fp16.",
            )
        self._accelerator.clip_grad_norm_(list(self._trainable.values()), self._settings.clip)
        self._wrapped_optimiser.step()
        self.progress.skipped += bool(self._accelerator.optimizer_step_was_skipped)
        self._wrapped_optimiser.zero_grad()
        self.progress.step += 1
        tokens = self.progress.step * self._tokens_of_a_step
        return {"step": self.progress.step, "tokens": tokens, **losses, "lr": rate}, save

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss over the held-out windows, None if there are none. The best weights so far are kept."""
        if not len(self._validation):
            return None
        mean = self._validation_loss()
        if self.progress.best_loss is None or mean < self.progress.best_loss:
            self.progress.best_step, self.progress.best_loss = self.progress.step, mean
            if self._is_first:
                tensors = {name: parameter.data for name, parameter in self._trainable.items()}
                save_tensors(self._folder / BEST, tensors, {"step": self.progress.step, "loss": mean})
        return mean

    @torch.no_grad()
    def _validation_loss(self) -> float:
        parts, total = torch.split(self._validation, self._settings.micro_batch), torch.zeros((), dtype=torch.float64)
        size, rank = self._accelerator.num_processes, self._accelerator.process_index
        # All processes run equally often, because forwards may wait for each other; surplus runs do not count.
        for place in range(rank, math.ceil(len(parts) / size) * size, size):
            part = parts[min(place, len(parts) - 1)]
            loss = self._objective(part)[0].cpu().double() * self._weight(part)  # not all devices have float64
            total += loss if place < len(parts) else 0
        if size > 1:
            total = self._accelerator.reduce(total.to(self._accelerator.device))
        return total.item() / self._weight(self._validation)

    def _weight(self, windows: Tensor) -> int:
        """How much the mean loss of some windows counts: by their predictions where only answers do."""
        return int(counted(windows).sum()) or 1 if self._settings.answers_only else len(windows)

    @property
    def peak(self) -> float:
        """The learning rate at its highest."""
        return self.progress.learning_rate or self._settings.learning_rate

    def _make_optimiser(self, rate: float) -> torch.optim.AdamW:
        decay = self._settings.weight_decay
        return torch.optim.AdamW(self._trainable.values(), lr=rate, betas=BETAS, weight_decay=decay)

    def _schedule(self) -> Callable[[int], float]:
        """The learning rate of a step as a share of the peak: a warm-up, then a cosine down to the lowest rate."""
        settings, optimiser = self._settings, self._make_optimiser(self.peak)
        warmup, low = max(1, round(settings.warmup * self._steps)), min(settings.min_learning_rate, self.peak)
        schedule = get_cosine_with_min_lr_schedule_with_warmup(optimiser, warmup, self._steps, min_lr=low)
        return schedule.lr_lambdas[0]  # type: ignore[no-any-return]

    def save(self) -> None:
        """Write what the run needs to continue from here."""
        start = time.monotonic()
        text, buffer = self._text.state()
        if self._accelerator.scaler is not None:
            self.progress.scale = self._accelerator.scaler.state_dict()
        if self._is_first:
            tensors = {"text/buffer": buffer}
            for name, parameter in self._trainable.items():
                moments = self._optimiser.state[parameter]  # empty before the first step
                tensors |= {f"{key}/{name}": value for key, value in {"parameter": parameter.data, **moments}.items()}
            save_tensors(self._folder / STATE, tensors, {"progress": vars(self.progress), "text": text})
        self._accelerator.wait_for_everyone()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def _restore(self) -> None:
        """Continue from the saved state if there is one."""
        if (self._folder / STATE).exists():
            tensors, value = load_tensors(self._folder / STATE)
            self.progress = Progress(**value["progress"])
            for name, parameter in self._trainable.items():
                parameter.data.copy_(tensors[f"parameter/{name}"])
                for key in MOMENTS:
                    if f"{key}/{name}" in tensors:
                        moment = tensors[f"{key}/{name}"].to("cpu" if key == "step" else parameter.device)
                        self._optimiser.state[parameter][key] = moment
            self._text.load(value["text"], tensors["text/buffer"])
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(self.progress.scale)
        if self._is_first:
            rows = read_json_lines(self._folder / HISTORY) if self.progress.step else []
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.progress.step]
            write_text(self._folder / HISTORY, "".join(kept))

    def _accumulate_gradients(self) -> dict[str, Tensor]:
        """Gradients of the mean loss over this process's share of the next batch; returns the mean of each loss."""
        batch, size = self._text.batch(self._settings.batch_windows), self._accelerator.num_processes
        parts = torch.split(batch.chunk(size)[self._accelerator.process_index], self._settings.micro_batch)
        whole = self._weight(batch) / size  # gradients and losses become means over the processes
        means: dict[str, Tensor] = {}
        for number, windows in enumerate(parts):
            last, share = number == len(parts) - 1, self._weight(windows) / whole
            part = windows.to(self._validation.device)
            with nullcontext() if last else self._accelerator.no_sync(self._objective):
                total, each = self._objective(part)
                self._accelerator.backward(total * share)
            for name, value in {"loss": total.detach(), **each}.items():
                means[name] = means.get(name, 0) + value.float() * share
        return means

    def _over_processes(self, means: dict[str, Tensor]) -> tuple[dict[str, float], bool]:
        """The mean losses over all processes, and whether to save after this step.

        The first process decides when to save: clocks differ, and all processes wait for each other at a save.
        """
        size, step, every = self._accelerator.num_processes, self.progress.step + 1, self._settings.save_every
        waited, wait = time.monotonic() - self._saved_at, max(SAVE_SECONDS, self._save_seconds / SAVE_SHARE)
        due = waited >= wait if every is None else step % every == 0
        save = step == self._steps or (self._is_first and due)
        if size > 1:
            votes = torch.full_like(means["loss"], float(save))
            summed = self._accelerator.reduce(means | {"save": votes})
            save = summed.pop("save").item() > 0
            means = {name: value / size for name, value in summed.items()}
        return {name: value.item() for name, value in means.items()}, save

    def _add_row(self, row: dict[str, Any], on_row: Callable[[dict[str, Any]], None]) -> None:
        if self._is_first:
            append_json_line(self._folder / HISTORY, row)
        on_row(row | {"steps": self._steps})
