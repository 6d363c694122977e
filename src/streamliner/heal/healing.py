"""One healing: its run folder, the trial before training, the training, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamliner.cut.verification import sample_tokens
from streamliner.heal.accelerator import make_accelerator
from streamliner.heal.graft import Graft, make_graft
from streamliner.heal.objective import make_objective
from streamliner.heal.prepare import Prepared, identity_of, record_of
from streamliner.heal.state import open_run, steps_done
from streamliner.heal.trainer import Trainer
from streamliner.heal.trial import try_out
from streamliner.measure.loss import text_loss
from streamliner.model.blocks import Blocks
from streamliner.model.fingerprint import weights_hash
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter
from streamliner.runs.yaml_config import write_config


@dataclass(frozen=True)
class Healing:
    """What is healed, how, and where.

    Attributes:
        dense: the dense model, frozen; it is changed.
        removed: the blocks that were removed.
        prepared: settings and text.
        folder: of the run.
        cut_folder: the cut checkpoint; read only for networks without attention.
        reporter: shows messages and progress.
        arguments: of the command line, to be written into the run folder.
    """

    dense: Session
    removed: tuple[int, ...]
    prepared: Prepared
    folder: Path
    cut_folder: Path
    reporter: Reporter
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def train(self) -> tuple[Graft, dict[str, Any]]:
        """Train to the end, or continue to it.

        Returns:
            The trained graft, and `training` and `validation_perplexity` for the result.

        Raises:
            OutputError: the folder has another run.
            HealingError: the model cannot be healed so, or a loss is not finite.
        """
        blocks, settings, text = self.dense.load(self.reporter), self.prepared.settings, self.prepared.text
        graft = make_graft(blocks, self.removed, settings)
        accelerator = make_accelerator(settings, blocks.dtype, blocks.device, self.folder)
        self._enter_folder(graft)
        objective = make_objective(graft, settings, bos=text.has_bos)
        for line in self.prepared.describe(objective):
            self.reporter.say(line)
        if settings.trackers:
            values = record_of(settings).items()
            config = {name: value if isinstance(value, (int, float)) else str(value) for name, value in values}
            accelerator.init_trackers("streamliner", config=config)
        perplexity = self._perplexities(graft) if self.dense.ranks.rank == 0 else {}
        trainer = Trainer(objective, text, settings, self.prepared.steps, accelerator, self.folder)
        with self.reporter.training(self.prepared.steps) as on_row:
            trained = trainer.run(on_row)
        if settings.trackers:
            accelerator.end_training()
        accelerator.free_memory()
        return graft, {"training": dataclasses.asdict(trained), "validation_perplexity": perplexity}

    def result(self, graft: Graft, unused_parameters: int, measured: dict[str, Any]) -> dict[str, Any]:
        """The result as a JSON value, not yet verified, from a merged graft and what `merge` and `train` returned."""
        with graft.in_place():
            healed = self._perplexity(graft.blocks)
        return {
            "gaps": [{"start": gap.start, "stop": gap.stop, "places": list(gap.places)} for gap in graft.gaps],
            "removed": list(self.removed),
            "blocks_before": len(graft.blocks),
            "blocks_after": len(graft.blocks) - len(self.removed),
            "custom_code": bool(graft.networks),
            "unused_parameters": unused_parameters,
            "settings": record_of(self.prepared.settings),
            "training": measured["training"],
            "validation_perplexity": measured["validation_perplexity"] | {"healed": healed},
            "verification": None,
        }

    def _enter_folder(self, graft: Graft) -> None:
        """Create the run folder, or find it as this run left it; before a run starts, try out its networks."""
        ranks, settings = self.dense.ranks, self.prepared.settings
        identity = {
            "model": self.dense.identity | {"weights": weights_hash(graft.blocks.model)},
            "removed": list(self.removed),
            "dtype": str(graft.blocks.dtype),
            "steps": self.prepared.steps,
            "text": self.prepared.text.fingerprint,
            "settings": identity_of(settings),
        }
        if ranks.rank == 0:
            open_run(self.folder, identity, record_of(settings), overwrite=settings.overwrite)
            if self.arguments:
                shown = dataclasses.replace(settings, run=str(self.folder))
                write_config(self.folder, "heal", self.arguments, shown, self.dense.settings)
        ranks.wait()
        done = steps_done(self.folder)
        if done is not None:
            self.reporter.say(f"Continuing the run in {self.folder} after step {done} of {self.prepared.steps}.")
        elif ranks.rank == 0:
            try_out(graft, self.cut_folder, self.folder, sample_tokens(self.dense.config), self.reporter)
        ranks.wait()

    def _perplexities(self, graft: Graft) -> dict[str, float | None]:
        if len(self.prepared.text.validation):
            self.reporter.say("Measuring the dense and the cut model on the held-out windows ...")
        dense = self._perplexity(graft.blocks)
        with graft.blocks.bypass(self.removed):
            return {"dense": dense, "cut": self._perplexity(graft.blocks)}

    def _perplexity(self, blocks: Blocks) -> float | None:
        """Of the model as it is now, on the held-out windows; None without any."""
        windows = self.prepared.text.validation
        return text_loss(blocks, windows).perplexity if len(windows) else None
