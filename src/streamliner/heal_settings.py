"""The settings of healing, and of the text that a model writes to be healed on; see `settings.py`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamliner.errors import HealingError, did_you_mean
from streamliner.fields import check_values, default_of, flag, long_name, names, number, weights
from streamliner.settings import ANSWERS_ONLY, BATCH_SIZE, LENGTH, OVERWRITE, QUIET, SEED, VERIFY
from streamliner.types import ModelLike, PreTrainedTokenizerBase

PRECISIONS = ("no", "bf16", "fp16")
FOLD_NAMES = ("refit", "gain", "replaceme", "neurons", "auto")
NETWORKS = ("block", "swiglu", "ffn", "none")
INITS = ("first", "last", "mean", "random")
STREAM_LOSSES = ("mse", "normalized-mse")
"""Losses that compare residual streams."""
HEAD_LOSSES = ("lm", "kd")
"""Losses that need the model's logits."""
TOKENS, BATCH = 60_000_000, 32
"""LLM-Streamline's training budget (arXiv 2403.19135), 0.06 billion tokens, and the windows of an optimiser step."""
FEW_TOKENS, SMALL_BATCH = 100_000, 4
"""The defaults without a GPU."""


@dataclass(frozen=True)
class HealSettings:
    """How to heal a cut model: network, losses, text, budget, optimiser (arXiv 2403.19135, section 3.2)."""

    dense: ModelLike | None = flag(None, "Model it was cut from (default: as recorded)", metavar="MODEL")
    tokenizer: PreTrainedTokenizerBase | None = flag(None, "", python_only=True)
    run: str | Path | None = flag(None, "Run folder (default: the output's name + .run)", metavar="RUN")
    fold: str | None = flag(None, "Repair in closed form, before any training", choices=FOLD_NAMES)
    fold_blocks: str = flag("gaps", "Blocks to fold: those before gaps, or all later ones", choices=("gaps", "later"))
    fold_tokens: int | str | None = flag(None, "Tokens to fit a fold on (default: by its size)", metavar="N")
    network: str = flag(
        None, "Network in place of removed blocks (default: block; --fold: none)", choices=NETWORKS, plugins="network"
    )
    network_depth: int = flag(1, "Blocks of a network", minimum=1)
    init: str = flag("first", "Initial weights of a block network", choices=INITS)
    residual: bool = flag(True, "Compute x + f(norm(x)); with --no-residual f(x) (swiglu, ffn)")
    loss: str | Iterable[str] | Mapping[str, float] = flag(
        "mse", "Training loss: mse, normalized-mse, lm or kd; repeatable", metavar="NAME[=W]", repeatable=True
    )
    top_k: int | None = flag(None, "Compare only the K likeliest tokens (kd)", metavar="K")
    sampled_softmax: int = flag(0, "Logits of N frequent tokens and N others only (lm, kd)", metavar="N", minimum=0)
    network_input: str = flag("dense", "Stream that a network learns on (mse)", choices=("dense", "cut"))
    lora: int = flag(0, "Rank of LoRA on remaining blocks (lm, kd)", minimum=0)
    train_blocks: int | str = flag(0, "Number of last kept blocks to train, or all (lm, kd)", metavar="N")
    train_head: bool = flag(False, "Also train the final norm and the head (lm, kd)")
    data: str | Iterable[str] | Mapping[str, float] = flag(
        (), "Training text: a source, or slimpajama; repeatable", metavar="SOURCE[=W]", repeatable=True
    )
    answers_only: bool = flag(False, ANSWERS_ONLY)
    sequence_length: int | None = flag(None, LENGTH)
    validation_windows: int = flag(16, "Windows held out to choose the best state")
    tokens: int | str | None = flag(None, "Budget in tokens (default: 60M; CPU: 100k)", metavar="N")
    steps: int | None = flag(None, "Budget in optimiser steps")
    epochs: float | None = flag(None, "Budget in passes over the text")
    global_batch_size: int | None = flag(None, "Windows of an optimiser step (default: 32; CPU: 4)", minimum=1)
    micro_batch: int = flag(1, "Windows in one forward; gradients add up", minimum=1)
    gradient_checkpointing: bool = flag(False, "Recompute blocks for gradients: less memory, more time")
    shard: bool = flag(False, "Divide frozen blocks among processes (FSDP2)")
    learning_rate: float = flag(2e-4, "Peak learning rate")
    find_learning_rate: bool = flag(False, "First try 0.1 to 10 times --learning-rate")
    min_learning_rate: float = flag(5e-6, "Learning rate of the last step")
    warmup: float = flag(0.03, "Warm-up, as a share of the steps", minimum=0)
    weight_decay: float = flag(1e-3, "Weight decay of AdamW")
    clip: float = flag(5.0, "Largest gradient norm")
    mixed_precision: str | None = flag(None, "Mixed precision (by default the model's own)", choices=PRECISIONS)
    validations: int = flag(20, "Number of validations in the run", minimum=1)
    save_every: int | None = flag(None, "Steps between saved states (default: about a minute)", minimum=1)
    track: str | Iterable[str] = flag((), "Tracker, such as tensorboard; repeatable", metavar="NAME", repeatable=True)
    seed: int = flag(0, SEED)
    verify: bool = flag(True, VERIFY)
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        """Raise UserError if settings contradict each other."""
        if self.network is None:
            object.__setattr__(self, "network", "none" if self.fold else "block")
        check_values(self)
        losses, _, _ = self.losses, self.texts, self.trackers
        wrong = next((name for name in losses if name not in STREAM_LOSSES + HEAD_LOSSES), None)
        if wrong is not None or not losses:
            known = STREAM_LOSSES + HEAD_LOSSES
            hint = did_you_mean(wrong or "", known, f"Choose one of {', '.join(known)}.")
            raise HealingError(f"--loss has no {wrong or 'value'}.", hint)
        if self.network != "block" and self.init != "first":
            raise HealingError("--init is for block networks.", "Add --network block, or leave out --init.")
        self._check_whole_blocks()
        if not self.trains and not self.fold:
            raise HealingError(
                "There is nothing to train.",
                "Choose a --network, --lora RANK, --train-blocks N, --train-head, or a --fold.",
            )
        if self.fold and (self.custom_network or self.init != "first" or self.network_depth > 1):
            raise HealingError(
                "--fold works only with --network block of one block, which then starts from the fold, or with none."
            )
        if not self.fold and (self.fold_tokens is not None or self.fold_blocks != "gaps"):
            raise HealingError(
                "--fold-tokens and --fold-blocks have no effect without --fold.", "Add --fold refit, or leave them out."
            )
        if not self.trains:
            idle = ("loss", "top_k", "sampled_softmax", "tokens", "steps", "epochs", "learning_rate")
            given = [name for name in idle if getattr(self, name) != default_of(HealSettings, name)]
            if given:
                found = f"{long_name(HealSettings, given[0])} is for training, but a fold trains nothing."
                raise HealingError(found, "To train after the fold, add --network block or --lora 16.")
            return
        if (self.network == "none" or self.lora or self.whole_blocks or self.train_head) and not self.head_losses:
            raise HealingError("Training kept blocks, adapters or the head needs the loss lm or kd.", "Add --loss kd.")
        if self.network == "none" and self.stream_losses and self.network_input == "dense":
            # There is no network that could run beside the dense model.
            object.__setattr__(self, "network_input", "cut")
        if self.answers_only and self.stream_losses:
            raise HealingError("--answers-only is for the losses lm and kd.", "Write --loss kd, without mse.")
        if self.find_learning_rate and self.validation_windows < 1:
            raise HealingError("--find-learning-rate needs held-out windows.", "Give --validation-windows 16.")
        if self.top_k is not None and ("kd" not in losses or self.top_k < 1):
            raise HealingError("--top-k must be at least 1, and needs --loss kd.")
        if self.sampled_softmax and (not self.head_losses or self.train_head or self.top_k is not None):
            found = "--sampled-softmax is for the losses lm and kd, without --train-head and --top-k."
            raise HealingError(found, "Leave it out, or write --loss kd without these two.")
        if sum(budget is not None for budget in (self.tokens, self.steps, self.epochs)) > 1:
            raise HealingError("The budget is given more than once.", "Give one of --tokens, --steps and --epochs.")
        for field in ("learning_rate", "clip"):
            if not getattr(self, field) > 0:
                raise HealingError(f"{long_name(HealSettings, field)} must be more than 0, not {getattr(self, field)}.")

    def _check_whole_blocks(self) -> None:
        """Raise HealingError unless `train_blocks` is a number or "all", and the network is a block or none."""
        text = str(self.train_blocks)
        if text != "all" and not text.isdigit():
            raise HealingError(f"--train-blocks {text} is not a number of blocks.", "Write --train-blocks 4, or all.")
        if self.whole_blocks and self.custom_network:
            raise HealingError("--train-blocks works only with --network block or none.")

    @property
    def custom_network(self) -> bool:
        """Whether networks have no attention, so that a checkpoint may have to carry their code."""
        return self.network not in ("block", "none")

    @property
    def trains(self) -> bool:
        """Whether anything is trained: networks, adapters, kept blocks or the head."""
        return self.network != "none" or self.lora > 0 or self.whole_blocks > 0 or self.train_head

    @property
    def whole_blocks(self) -> int:
        """How many of the last kept blocks are trained whole, at most."""
        return 10**6 if str(self.train_blocks) == "all" else int(self.train_blocks)

    @property
    def num_fold_tokens(self) -> int | None:
        """About how many tokens to fit a fold on; None for as many as it needs."""
        return None if self.fold_tokens is None else number(self.fold_tokens, "--fold-tokens", "tokens")

    @property
    def losses(self) -> dict[str, float]:
        """Weights by name of the loss."""
        found = weights(self.loss, "--loss")
        if len(dict(found)) < len(found):
            raise HealingError("--loss names one loss twice.")
        return dict(found)

    @property
    def stream_losses(self) -> dict[str, float]:
        """The losses that compare residual streams, with their weights."""
        return {name: weight for name, weight in self.losses.items() if name in STREAM_LOSSES}

    @property
    def head_losses(self) -> dict[str, float]:
        """The losses that need the whole model, with their weights."""
        return {name: weight for name, weight in self.losses.items() if name in HEAD_LOSSES}

    @property
    def texts(self) -> tuple[tuple[str, float], ...]:
        """Text sources with their share of the tokens; empty for the default."""
        return weights(self.data, "--data")

    @property
    def num_tokens(self) -> int:
        """The budget in tokens, where it is given neither in steps nor in epochs."""
        return TOKENS if self.tokens is None else number(self.tokens, "--tokens", "tokens")

    @property
    def batch_windows(self) -> int:
        """Windows of an optimiser step, over all processes."""
        return BATCH if self.global_batch_size is None else self.global_batch_size

    def as_before(self, sizes: Mapping[str, Any]) -> "HealSettings":
        """These settings with what they leave out as a run had it, on another device perhaps (`recorded_sizes`)."""
        budgets = ("tokens", "steps", "epochs")
        given = [name for name in sizes if getattr(self, name) is not None]
        left = {*given, *(budgets if {*budgets} & {*given} or not self.trains else ())}
        return replace(self, **{name: value for name, value in sizes.items() if name not in left})

    def without_gpu(self, sequence_length: int, windows_together: int) -> "HealSettings":
        """These settings with smaller defaults: of the windows, the budget, and the batch.

        Args:
            sequence_length: tokens of a window.
            windows_together: windows that all processes run at a time; the batch is a multiple of it.
        """
        small: dict[str, Any] = {}
        if self.sequence_length is None:
            small["sequence_length"] = sequence_length
        if self.trains and self.global_batch_size is None:
            small["global_batch_size"] = -(-SMALL_BATCH // windows_together) * windows_together
        if self.trains and self.tokens is None and self.steps is None and self.epochs is None:
            small["tokens"] = FEW_TOKENS
        return replace(self, **small)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of accelerate's trackers."""
        return names(self.track)


@dataclass(frozen=True)
class AnswerSettings:
    """How a model answers questions, to make training text of its own words."""

    num_samples: int = flag(1000, "Largest number of questions to answer", minimum=1)
    max_new_tokens: int = flag(256, "Longest answer, in tokens", minimum=1)
    prompt_tokens: int = flag(32, "Tokens of a plain text to continue", minimum=1)
    temperature: float = flag(1.0, "Temperature of sampling; 0 takes the likeliest token", minimum=0)
    batch_size: int = flag(8, BATCH_SIZE, minimum=1)
    seed: int = flag(0, SEED)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        check_values(self)
