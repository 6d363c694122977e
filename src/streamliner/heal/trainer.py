"""The training loop: accelerate's devices and precision, transformers' schedule, and a state that survives a kill."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from streamliner.errors import HealingError, MissingExtraError
from streamliner.heal.objective import Objective
from streamliner.heal.settings import TOKENS, HealSettings
from streamliner.heal.state import (
    BEST,
    HISTORY,
    STATE,
    History,
    Progress,
    Row,
    load_optimiser,
    load_tensors,
    optimiser_tensors,
    save_tensors,
)
from streamliner.text.stream import Mixture

BETAS = (0.9, 0.95)
"""AdamW's, those of LLM-Streamline's authors."""


SAVE_SECONDS, SAVE_SHARE = 60.0, 0.05
"""Where nobody says how often: at most once a minute, and at most this share of the time goes into saving."""


@dataclass(frozen=True)
class Trained:
    """What a training run came to.

    Attributes:
        steps, tokens: of the whole run.
        best_step, best_loss: the state that was kept; step 0 is the one before training.
        first_loss, last_loss: validation loss before and after.
        skipped: steps that half precision could not use.
        passes: how often each text was read to its end.
    """

    steps: int
    tokens: int
    best_step: int
    best_loss: float
    first_loss: float
    last_loss: float
    skipped: int
    passes: dict[str, int]


def count_steps(settings: HealSettings, mixture: Mixture) -> int:
    """Optimiser steps of the budget.

    Raises:
        HealingError: it is less than one.
    """
    of_a_step = settings.batch_size * mixture.sequence_length
    if settings.steps is not None:
        steps = settings.steps
    elif settings.epochs is not None:
        steps = round(settings.epochs * mixture.windows_in_a_pass()) // settings.batch_size
    else:
        steps = (settings.tokens or TOKENS) // of_a_step
    if steps < 1:
        raise HealingError(
            f"The budget is less than one step of {of_a_step:,} tokens.",
            "Give more --tokens, or a smaller --batch-size or --sequence-length.",
        )
    return steps


def find_trackers(settings: HealSettings) -> list[Any] | None:
    """accelerate's trackers by their names.

    Raises:
        HealingError, MissingExtraError: there is none of that name, or its library is not installed.
    """
    if not settings.track:
        return None
    from accelerate.tracking import filter_trackers

    try:
        trackers = filter_trackers(list(settings.track), ".")
    except ValueError as error:
        raise HealingError(f"accelerate knows no such tracker: {error}") from error
    missing = set(settings.track) - {str(getattr(each, "value", each)) for each in trackers}
    if missing:
        raise MissingExtraError(f"The tracker {min(missing)}", "track")
    return list(trackers)


def check_division(settings: HealSettings, processes: int) -> None:
    """Raise HealingError if a batch cannot be divided among processes and forwards."""
    share = settings.batch_size // processes
    if share * processes != settings.batch_size or share % settings.micro_batch:
        raise HealingError(
            f"A batch of {settings.batch_size} windows cannot be divided among {processes} processes with "
            f"{settings.micro_batch} windows in a forward.",
            "Choose --batch-size as a multiple of processes x --micro-batch.",
        )


def make_accelerator(settings: HealSettings, dtype: torch.dtype, device: torch.device, folder: Path) -> Any:
    """accelerate's `Accelerator` for these settings on this device."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
    precision = settings.mixed_precision or own
    if precision == "no" and own != "no":
        raise HealingError(
            f"The model is in {str(dtype).removeprefix('torch.')} and the network is trained in float32.",
            "Leave out --mixed-precision no, or add --dtype float32.",
        )
    trackers = find_trackers(settings)
    AcceleratorState._reset_state()  # of an earlier run in this process, which may have had another precision
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        device_placement=False,
        log_with=trackers,
        project_dir=folder if trackers else None,
    )
    if str(accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise HealingError(
            f"Each process of healing holds the whole model, and {accelerator.distributed_type.value} divides it.",
            "Launch it without, for instance: torchrun --nproc-per-node 4 -m streamliner heal ...",
        )
    return accelerator


def train(
    objective: Objective,
    mixture: Mixture,
    settings: HealSettings,
    steps: int,
    accelerator: Any,
    folder: Path,
    on_row: Callable[[Row], None],
) -> Trained:
    """Train what is trainable in `objective` and leave it in its best state.

    State goes to `folder`, and a run that finds its state there goes on: on a CPU to the same bits.

    Args:
        objective: with the model in place.
        mixture: the text, at its beginning.
        settings: optimiser, schedule, batches.
        steps: optimiser steps in all.
        accelerator: from `make_accelerator`.
        folder: of the run.
        on_row: called after every step with what happened.

    Raises:
        HealingError: the loss is not finite, or the batch cannot be divided.
    """
    size, rank = accelerator.num_processes, accelerator.process_index
    check_division(settings, size)
    share = settings.batch_size // size
    if size > 1:
        _freeze_unused(objective, mixture)
    trainable = objective.trainable()
    optimiser = torch.optim.AdamW(
        trainable.values(), lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
    )
    rate = _schedule(optimiser, settings, steps)
    prepared, wrapped = accelerator.prepare(objective, optimiser)
    progress = Progress()
    history = History(folder / HISTORY, writes=rank == 0)
    if (folder / STATE).exists():
        tensors, value = load_tensors(folder / STATE)
        progress = Progress(**value["progress"])
        load_optimiser(optimiser, trainable, tensors)
        mixture.load(value["text"], tensors["text/buffer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(progress.scale)
    history.go_back_to(progress.step)
    validation = mixture.validation.to(objective.graft.blocks.device)
    validate_at = {round(steps * part / settings.validations) for part in range(settings.validations + 1)} | {steps}

    def save() -> None:
        text, buffer = mixture.state()
        progress.scale = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        tensors = optimiser_tensors(optimiser, trainable) | {"text/buffer": buffer}
        if rank == 0:
            save_tensors(folder / STATE, tensors, {"progress": vars(progress), "text": text})
        accelerator.wait_for_everyone()

    def validate() -> float | None:
        if not len(validation):
            return None
        loss = _validate(prepared, validation, settings.micro_batch, accelerator)
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_step, progress.best_loss = progress.step, loss
            tensors = {name: parameter.data for name, parameter in trainable.items()}
            if rank == 0:
                save_tensors(folder / BEST, tensors, {"step": progress.step, "loss": loss})
        return loss

    clock = _Clock(settings.save_every)
    if progress.step == 0:
        row: Row = {"step": 0, "tokens": 0, "loss": None, "lr": 0.0, "validation": validate()}
        history.add(row)
        on_row(row | {"steps": steps})
        clock.saved(save)
    of_a_step = settings.batch_size * mixture.sequence_length
    with ExitStack() as stack:
        interrupt = _Interrupt(stack) if size == 1 else None
        while progress.step < steps:
            lr = settings.learning_rate * rate(progress.step + 1)
            for group in optimiser.param_groups:
                group["lr"] = lr
            windows = mixture.batch(settings.batch_size)[rank * share : (rank + 1) * share]
            sums = _accumulate(prepared, windows.to(validation.device), settings.micro_batch, accelerator)
            # The first process decides when to save: clocks differ, and all must wait for each other then.
            due = progress.step + 1 == steps or (rank == 0 and clock.is_time(progress.step + 1))
            sums["save"] = torch.full_like(sums["loss"], float(due) * size)
            losses = {name: value / size for name, value in accelerator.reduce(sums).items()} if size > 1 else sums
            loss = {name: value.item() for name, value in losses.items()}
            due = loss.pop("save") > 0
            if loss["loss"] != loss["loss"] or loss["loss"] in (float("inf"), float("-inf")):
                raise HealingError(
                    f"The loss of step {progress.step + 1} is {loss['loss']}.",
                    "Try a smaller --lr, or --mixed-precision bf16 in place of fp16.",
                )
            accelerator.clip_grad_norm_(list(trainable.values()), settings.clip)
            wrapped.step()
            progress.skipped += bool(accelerator.optimizer_step_was_skipped)
            wrapped.zero_grad()
            progress.step += 1
            row = {"step": progress.step, "tokens": progress.step * of_a_step, **loss, "lr": lr}
            if progress.step in validate_at:
                row["validation"] = validate()
            history.add(row)
            accelerator.log({key: value for key, value in row.items() if value is not None}, step=progress.step)
            on_row(row | {"steps": steps})
            if due or (interrupt and interrupt.asked):
                clock.saved(save)
            if interrupt and interrupt.asked:
                interrupt.now()
    if progress.best_loss is not None:
        best, _ = load_tensors(folder / BEST)
        for name, parameter in trainable.items():
            parameter.data.copy_(best[name])
    ends = [row["validation"] for row in history.rows() if row.get("validation") is not None]
    nan = float("nan")
    return Trained(
        steps=steps,
        tokens=steps * of_a_step,
        best_step=progress.step if progress.best_step is None else progress.best_step,
        best_loss=nan if progress.best_loss is None else progress.best_loss,
        first_loss=ends[0] if ends else nan,
        last_loss=ends[-1] if ends else nan,
        skipped=progress.skipped,
        passes=mixture.passes,
    )


def _freeze_unused(objective: Objective, mixture: Mixture) -> None:
    """Freeze what no loss reaches, such as attention to an encoder that is not there: processes would wait for it."""
    windows = mixture.validation[:1] if len(mixture.validation) else torch.arange(2, 10)[None]
    with torch.autocast(objective.graft.blocks.device.type, torch.bfloat16):
        objective(windows.to(objective.graft.blocks.device))[0].backward()
    for parameter in objective.trainable().values():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def _schedule(optimiser: torch.optim.Optimizer, settings: HealSettings, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at optimiser step 1 to `steps`: warm-up, then a cosine to the minimum at the last."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimiser,
        num_warmup_steps=max(1, round(settings.warmup * steps)),
        num_training_steps=steps,
        min_lr=min(settings.min_learning_rate, settings.learning_rate),
    )
    return schedule.lr_lambdas[0]  # type: ignore[no-any-return]


def _accumulate(prepared: Any, windows: Tensor, micro_batch: int, accelerator: Any) -> dict[str, Tensor]:
    """Gradients of the mean loss over `windows`, some at a time; returns that mean, and those of its parts."""
    parts = torch.split(windows, micro_batch)
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with accelerator.no_sync(prepared) if not last else nullcontext():
            total, each = prepared(part)
            accelerator.backward(total / len(parts))
        for name, value in {"loss": total.detach(), **each}.items():
            sums[name] = sums.get(name, 0) + value.float() / len(parts)
    return sums


@torch.no_grad()
def _validate(prepared: Any, windows: Tensor, micro_batch: int, accelerator: Any) -> float:
    """Mean loss over the windows, each measured by one process."""
    parts = list(torch.split(windows, micro_batch))
    total = torch.zeros((), dtype=torch.float64)
    # All processes run as often, as forwards may wait for each other; what is too much counts nothing.
    for first in range(0, len(parts), accelerator.num_processes):
        place = first + accelerator.process_index
        part = parts[min(place, len(parts) - 1)]
        loss = prepared(part)[0].double().cpu() * len(part)
        total += loss if place < len(parts) else 0
    summed = accelerator.reduce(total.to(accelerator.device)) if accelerator.num_processes > 1 else total
    return summed.item() / len(windows)  # type: ignore[no-any-return]


class _Interrupt:
    """Ctrl-C waits for the end of a step, so that the state can be saved; a second one does not wait.

    Attributes:
        asked: whether it was pressed.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.asked = False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            stack.callback(signal.signal, signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.now()
        self.asked = True

    def now(self) -> None:
        """Do what would have been done at once."""
        signal.signal(signal.SIGINT, self._before)
        signal.raise_signal(signal.SIGINT)


class _Clock:
    """When to save."""

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._last, self._cost = time.monotonic(), 0.0

    def is_time(self, step: int) -> bool:
        """Whether to save after this step."""
        if self._every is not None:
            return step % self._every == 0
        return time.monotonic() - self._last >= max(SAVE_SECONDS, self._cost / SAVE_SHARE)

    def saved(self, save: Callable[[], None]) -> None:
        """Save, and note how long that took."""
        start = time.monotonic()
        save()
        self._last = time.monotonic()
        self._cost = self._last - start
