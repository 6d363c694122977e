"""One healing: what can be checked before it starts, its run folder, the training, and its result."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from streamliner.cut.verification import sample_tokens
from streamliner.errors import HealingError, MissingExtraError
from streamliner.heal.accelerator import find_trackers, make_accelerator
from streamliner.heal.checks import check_healable, check_offloaded, check_sharded
from streamliner.heal.folding import Folded, fold
from streamliner.heal.graft import Graft, make_graft
from streamliner.heal.merge import merge
from streamliner.heal.networks.make import network_class
from streamliner.heal.objective import Objective
from streamliner.heal.sampled_softmax import SampledSoftmax, make_sampled_softmax
from streamliner.heal.save import try_out
from streamliner.heal.sharded import sharded
from streamliner.heal.state import STATE, load_tensors, open_run, recorded_sizes
from streamliner.heal.trainer import Prepared, Trained, Trainer
from streamliner.heal_settings import HealSettings
from streamliner.measure.loss import text_loss
from streamliner.model.blocks import Blocks
from streamliner.model.devices import enough_memory
from streamliner.model.fingerprint import fingerprint
from streamliner.model.session import Session
from streamliner.runs.lock import one_writer
from streamliner.runs.reporter import Reporter
from streamliner.runs.yaml_config import write_config
from streamliner.text.calibration import SHORT_LENGTH
from streamliner.text.stream import PRESETS, TrainingText

THAT_MATTER = (
    *("network", "network_depth", "init", "residual", "top_k", "network_input", "lora", "sequence_length"),
    *("validation_windows", "learning_rate", "min_learning_rate", "warmup", "weight_decay", "clip"),
    *("mixed_precision", "validations", "seed"),
)
"""Settings that a run cannot change when it continues."""


def prepare_healing(dense: Session, settings: HealSettings, reporter: Reporter) -> Prepared:
    """Raise UserError for all that can be found before there is a plan and before weights are loaded."""
    check_healable(dense.source.name, dense.shell, dense.config, one_device=dense.settings.device != "auto")
    if dense.settings.offload:
        check_offloaded(settings)
    if settings.shard:
        check_sharded(dense)
    if settings.custom_network:
        network_class(settings.network)
    if settings.lora and find_spec("peft") is None:
        raise MissingExtraError("LoRA", "heal")
    if settings.fold and dense.ranks.size > 1:
        raise HealingError("--fold works only in one process.", "Leave out the launcher, or --fold.")
    together = dense.ranks.size * settings.micro_batch
    if before := None if settings.run is None or settings.overwrite else recorded_sizes(Path(settings.run)):
        settings = settings.as_before(before)
    elif dense.is_slow:
        settings = settings.without_gpu(min(SHORT_LENGTH, dense.context), together)
    if settings.batch_windows % together:
        raise HealingError(
            f"A batch of {settings.batch_windows} windows cannot be divided among {dense.ranks.size} processes "
            f"with {settings.micro_batch} windows in a forward.",
            "Choose --global-batch-size as a multiple of processes x --micro-batch.",
        )
    find_trackers(settings)
    texts = settings.texts
    if not texts and dense.source.kind == "hub":
        texts = (("slimpajama", 1.0),)
    elif not texts:
        reporter.say("Training on python-docs, a small text that needs no network. Name your own text with --data.")
        texts = (("python-docs", 1.0),)
    data: dict[str, float] = {}
    for name, weight in texts:
        for source, share in PRESETS.get(name, ((name, 1.0),)):
            data[source] = data.get(source, 0.0) + share * weight
    settings = dataclasses.replace(settings, data=data)
    text = TrainingText(
        settings.texts,
        dense.tokenizer(),
        sequence_length=dense.window_length(settings.sequence_length),
        validation_windows=settings.validation_windows,
        seed=settings.seed,
        answers_only=settings.answers_only,
    )
    return Prepared(settings, text, count_steps(settings, text) if settings.trains else 0)


def count_steps(settings: HealSettings, text: TrainingText) -> int:
    """Optimiser steps of the budget. Raises HealingError if it is less than one."""
    tokens = settings.batch_windows * text.sequence_length
    steps = settings.num_tokens // tokens if settings.steps is None else settings.steps
    if settings.epochs is not None:
        steps = round(settings.epochs * text.windows_in_a_pass()) // settings.batch_windows
    if steps < 1:
        raise HealingError(
            f"The budget is less than one step of {tokens:,} tokens.",
            "Give more --tokens, or a smaller --global-batch-size or --sequence-length.",
        )
    return steps


@dataclass(frozen=True)
class Healing:
    """What is healed, how, and where. The dense model, frozen, is changed.

    The cut checkpoint is read only for networks without attention. `arguments` of the command line go into the folder.
    """

    dense: Session
    removed: tuple[int, ...]
    prepared: Prepared
    folder: Path
    cut_folder: Path
    reporter: Reporter
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def train(
        self, precision: torch.dtype | None = None, store: Callable[[Graft], dict[str, Any]] | None = None
    ) -> tuple[Graft, dict[str, Any]]:
        """Train to the end, or continue to it, and merge what was trained, rounded to `precision` (see `merge`).

        `store` brings the healed weights into the form in which they will be written, before they are measured, and
        returns a report with their `largest_error`.

        Returns the merged graft and the result, a JSON value, not yet verified; {} in all processes but the first.
        """
        with one_writer(self.folder, "heal") if not self.dense.ranks.rank else nullcontext():
            return self._train(precision, store)

    def _train(
        self, precision: torch.dtype | None, store: Callable[[Graft], dict[str, Any]] | None
    ) -> tuple[Graft, dict[str, Any]]:
        settings, blocks = self.prepared.settings, self.dense.load(self.reporter)
        graft = make_graft(blocks, self.removed, settings)
        sampled = make_sampled_softmax(blocks, settings, self.prepared.text, self.prepared.steps, self.reporter.say)
        device, accelerator = blocks.device, None
        if settings.shard:  # then the model was loaded on the CPU
            device = torch.device(self.dense.settings.device or self.dense.ranks.device)
        if settings.trains:
            accelerator = make_accelerator(settings, blocks.dtype, device, self.folder)
            if settings.find_learning_rate and accelerator.scaler is not None:
                # Its gradient scaler needs more steps than such a test has.
                raise HealingError("--find-learning-rate does not work in float16.", "Add --mixed-precision bf16.")
        self._enter_folder(graft)
        first = self.dense.ranks.rank == 0
        with sharded(graft, device, self.reporter, keep=first) if settings.shard else nullcontext():
            perplexity = self._perplexities(graft) if first or settings.shard else {}
            folds = self._fold(graft, perplexity) if settings.fold else []
            trained = self._run_training(graft, sampled, accelerator) if accelerator else None
        if not first:
            return graft, {}
        unused = merge(graft, precision, sample_tokens(self.dense.config))
        with graft.in_place():
            perplexity["healed"] = self._perplexity(graft.blocks)
        stored = {}
        if store is not None:
            stored = {"stored": store(graft)}
            if stored["stored"]["largest_error"]:
                perplexity["unquantised"] = perplexity.pop("healed")
                with graft.in_place():
                    perplexity["healed"] = self._perplexity(graft.blocks)
        return graft, stored | {
            "gaps": [dataclasses.asdict(gap) for gap in graft.gaps],
            "removed": list(self.removed),
            "blocks_before": len(blocks),
            "blocks_after": len(blocks) - len(self.removed),
            "custom_code": bool(graft.networks),
            "unused_parameters": unused,
            "settings": record_of(settings),
            "folds": [dataclasses.asdict(each) for each in folds],
            "training": None if trained is None else dataclasses.asdict(trained),
            "validation_perplexity": perplexity,
            "verification": None,
        }

    def _fold(self, graft: Graft, perplexity: dict[str, float | None]) -> list[Folded]:
        """Repair in closed form: networks start from that, and other blocks of the graft become changed copies."""
        settings, start = self.prepared.settings, Graft(graft.blocks, (), {}, graft.removed)
        done = fold(start, settings, self.prepared.text, self.reporter.say)
        if settings.trains:
            with start.in_place():
                perplexity["folded"] = self._perplexity(graft.blocks)
        frozen = {place: each.requires_grad_(False) for place, each in start.networks.items()}
        for place in frozen.keys() & graft.networks.keys():
            graft.networks[place].load_state_dict(frozen.pop(place).state_dict())
        graft.networks = {**graft.networks, **frozen}
        return done

    def _run_training(self, graft: Graft, sampled: SampledSoftmax | None, accelerator: Any) -> Trained:
        """Train what is trainable in the graft to its best state."""
        settings = self.prepared.settings
        objective = Objective(graft, settings, first=self.prepared.text.prefix, sampled=sampled)
        self._describe(objective)
        if settings.trackers:
            values = record_of(settings).items()
            config = {name: value if isinstance(value, (int, float)) else str(value) for name, value in values}
            accelerator.init_trackers("streamliner", config=config)
        trainer = Trainer(objective, self.prepared, accelerator, self.folder)
        smaller = "--micro-batch 1, --sequence-length 512, --dtype bfloat16 or --network none --lora 8"
        with self.reporter.training(self.prepared.steps) as on_row, enough_memory("training", smaller):
            if settings.find_learning_rate and trainer.progress.step == 0:
                self._say_rates(trainer.find_learning_rate(), trainer.peak)
            trained = trainer.run(on_row)
        if settings.trackers:
            accelerator.end_training()
        accelerator.free_memory()
        return trained

    def _say_rates(self, losses: dict[float, float], best: float) -> None:
        """Say what a range test found."""
        tried = ", ".join(f"{rate:.1e}: {loss:.4f}" for rate, loss in losses.items() if rate)
        self.reporter.say(
            f"Validation loss {losses[0.0]:.4f}, after a few steps with {tried}. Training with {best:.1e}."
        )

    def _enter_folder(self, graft: Graft) -> None:
        """Create the run folder, or find it as this run left it; before a run starts, try out its networks."""
        ranks, settings = self.dense.ranks, self.prepared.settings
        found = fingerprint(graft.blocks)
        identity = found | {
            "model": self.dense.identity | {"weights": found.pop("weights")},
            "removed": list(self.removed),
            "steps": self.prepared.steps,
            "text": self.prepared.text.fingerprint,
            "settings": identity_of(settings),
        }
        if ranks.rank == 0:
            if open_run(self.folder, identity, record_of(settings), overwrite=settings.overwrite):
                self.reporter.say("An earlier release started this run, and did not record the config: is it the same?")
            if self.arguments:
                shown = dataclasses.replace(settings, run=str(self.folder))
                write_config(self.folder, "heal", self.arguments, shown, self.dense.settings)
        ranks.wait()
        if (self.folder / STATE).exists():
            done = load_tensors(self.folder / STATE)[1]["progress"]["step"]
            self.reporter.say(f"Continuing the run in {self.folder} after step {done} of {self.prepared.steps}.")
        elif ranks.rank == 0:
            try_out(graft, self.cut_folder, self.folder, sample_tokens(self.dense.config), self.reporter)
        ranks.wait()

    def _describe(self, objective: Objective) -> None:
        """Say what will be trained."""
        settings, text, steps = self.prepared.settings, self.prepared.text, self.prepared.steps
        trainable = sum(parameter.numel() for parameter in objective.trainable().values())
        batch = settings.batch_windows
        losses = " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in settings.losses.items())
        for gap in objective.graft.gaps:
            self.reporter.say(f"{gap}.")
        self.reporter.say(
            f"Training {trainable:,} parameters with loss {losses}: {steps} steps of {batch} windows of "
            f"{text.sequence_length} tokens, {steps * batch * text.sequence_length:,} tokens in all; "
            f"{len(text.validation)} windows held out."
        )

    def _perplexities(self, graft: Graft) -> dict[str, float | None]:
        if len(self.prepared.text.validation):
            self.reporter.say("Measuring the dense and the cut model on the held-out windows ...")
        dense = self._perplexity(graft.blocks)
        with graft.blocks.bypass(self.removed):
            return {"dense": dense, "cut": self._perplexity(graft.blocks)}

    def _perplexity(self, blocks: Blocks) -> float | None:
        """Of the model as it is now, on the held-out windows; None without any."""
        windows = self.prepared.text.validation
        at_once = self.prepared.settings.micro_batch if blocks.offloaded else 1
        return text_loss(blocks, windows, at_once=at_once).perplexity if len(windows) else None


def identity_of(settings: HealSettings) -> dict[str, Any]:
    """The settings that must be the same when a run continues, under the names that all releases gave them."""
    newer = {name: getattr(settings, name) for name in ("fold", "fold_blocks", "fold_tokens") if settings.fold}
    newer |= {name: True for name in ("answers_only", "find_learning_rate", "train_head") if getattr(settings, name)}
    newer |= {"train_blocks": str(settings.train_blocks)} if settings.whole_blocks else {}
    newer |= {"sampled_softmax": settings.sampled_softmax} if settings.sampled_softmax else {}
    return (
        {name: getattr(settings, name) for name in THAT_MATTER}
        | newer
        | {
            "loss": settings.losses,
            "data": [list(pair) for pair in settings.texts],
            "batch_size": settings.batch_windows,
        }
    )


def record_of(settings: HealSettings) -> dict[str, Any]:
    """All settings of the training as a JSON value."""
    free = {name: getattr(settings, name) for name in ("steps", "epochs", "micro_batch", "save_every")}
    budget = None if settings.tokens is None else settings.num_tokens
    return identity_of(settings) | free | {"tokens": budget, "track": list(settings.trackers)}
