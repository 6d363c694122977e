"""What to heal with: network, losses, text, budget, optimiser. Defaults are LLM-Streamline's where it has any."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from streamliner.errors import HealingError
from streamliner.heal.losses import HEAD_LOSSES, LOSSES, STREAM_LOSSES
from streamliner.heal.networks.make import INITS, KINDS

TOKENS = 60_000_000
"""LLM-Streamline's budget: 0.06 billion tokens."""


PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class HealSettings:
    """How to heal a cut model.

    Attributes:
        network: "block", "swiglu", "ffn", or "none" for adapters alone.
        network_depth: blocks of a network.
        init: of a block, see `networks.make_networks`.
        residual: of swiglu and ffn, see `feed_forward.FeedForward`.
        loss: weight by name, of LOSSES.
        top_k: of `kd`: only the dense model's likeliest words are told apart.
        network_input: what a network is trained on with a stream loss: the "dense" model's stream, or the one that the
            "cut" model has with all networks before it.
        lora: rank of the adapters on all remaining blocks; 0 for none.
        data: text sources, each with its share of the tokens; none for the paper's text if the model is on the hub,
            else python-docs.
        sequence_length: tokens of a window; None for 2048, or the model's limit if that is less.
        validation_windows: held out of the text.
        tokens, steps, epochs: the budget, one of them; all None for TOKENS.
        batch_size: windows of an optimiser step, over all processes.
        micro_batch: windows of one forward in one process.
        learning_rate, min_learning_rate, warmup: the cosine schedule; `warmup` is a share of the steps.
        weight_decay, clip: AdamW's, and the largest norm of a gradient.
        mixed_precision: "no", "bf16" or "fp16"; None for bf16 if the model is in bfloat16, fp16 if in float16, else no.
        validations: how often to validate in the run, evenly; also before the first step.
        save_every: steps between saved states; None for about once a minute, and seldom enough to cost little.
        track: names of accelerate's trackers.
        seed: of the order of windows and of random weights.
    """

    network: str = "block"
    network_depth: int = 1
    init: str = "first"
    residual: bool = True
    loss: dict[str, float] = field(default_factory=lambda: {"mse": 1.0})
    top_k: int | None = None
    network_input: str = "dense"
    lora: int = 0
    data: tuple[tuple[str, float], ...] = ()
    sequence_length: int | None = None
    validation_windows: int = 16
    tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    micro_batch: int = 1
    learning_rate: float = 2e-4
    min_learning_rate: float = 5e-6
    warmup: float = 0.03
    weight_decay: float = 1e-3
    clip: float = 5.0
    mixed_precision: str | None = None
    validations: int = 20
    save_every: int | None = None
    track: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise HealingError if settings contradict each other."""
        self._choice("--network", self.network, (*KINDS, "none"))
        self._choice("--init", self.init, INITS)
        self._choice("--network-input", self.network_input, ("dense", "cut"))
        if self.mixed_precision is not None:
            self._choice("--mixed-precision", self.mixed_precision, PRECISIONS)
        if self.lora < 0:
            raise HealingError(f"--lora must be 0 or more, not {self.lora}.")
        if self.network != "block" and self.init != "first":
            raise HealingError("--init says what a block starts as.", "Add --network block, or leave it out.")
        for name, weight in self.loss.items():
            self._choice("--loss", name, LOSSES)
            if not (weight > 0 and math.isfinite(weight)):
                raise HealingError(f"The weight of --loss {name} must be more than 0, not {weight}.")
        if not self.loss:
            raise HealingError("There is no loss.", f"Choose one of {', '.join(LOSSES)}.")
        through_head, on_streams = (any(name in each for name in self.loss) for each in (HEAD_LOSSES, STREAM_LOSSES))
        if self.network == "none" and not self.lora:
            raise HealingError("There is nothing to train.", "Choose a --network, or --lora RANK, or both.")
        if (self.network == "none" or self.lora) and not through_head:
            raise HealingError(
                "Adapters on all blocks are trained through the whole model.",
                "Add lm or kd to --loss, such as --loss kd.",
            )
        if self.network == "none" and on_streams:
            raise HealingError(
                f"Without a network there is no stream to match: {', '.join(self.loss)}.", "Use lm or kd."
            )
        if self.top_k is not None and ("kd" not in self.loss or self.top_k < 1):
            raise HealingError("--top-k is a number of words for --loss kd.")
        if sum(budget is not None for budget in (self.tokens, self.steps, self.epochs)) > 1:
            raise HealingError("The budget is given more than once.", "Give one of --tokens, --steps and --epochs.")
        for name in ("batch_size", "micro_batch", "network_depth", "learning_rate", "clip", "validations"):
            if not getattr(self, name) > 0:
                flag = {"learning_rate": "lr"}.get(name, name.replace("_", "-"))
                raise HealingError(f"--{flag} must be more than 0, not {getattr(self, name)}.")
        for name, weight in self.data:
            if not weight > 0:
                raise HealingError(f"The weight of --data {name} must be more than 0, not {weight}.")

    def _choice(self, flag: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise HealingError(f"{flag} has no {value}.", f"Choose one of {', '.join(choices)}.")

    @property
    def on_streams(self) -> dict[str, float]:
        """The losses that compare streams, with their weights."""
        return {name: weight for name, weight in self.loss.items() if name in STREAM_LOSSES}

    @property
    def through_head(self) -> dict[str, float]:
        """The losses that need the whole model, with their weights."""
        return {name: weight for name, weight in self.loss.items() if name in HEAD_LOSSES}
