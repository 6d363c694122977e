"""The fold in the loop of a search: after every few blocks the model is repaired, and the next are chosen on that."""

from dataclasses import dataclass
from typing import Any

from streamliner.cut.structure import Structure
from streamliner.heal.folding import VERSION
from streamliner.heal.repaired import repaired_model
from streamliner.heal.trainer import Prepared
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.runs.journal import Journal
from streamliner.search.steps import Steps

FOLD_SETTINGS = ("fold", "fold_blocks", "fold_tokens", "sequence_length", "validation_windows", "answers_only", "seed")
"""Settings of healing that a fold depends on. Those of a training after it may change when a search continues."""


@dataclass(frozen=True)
class FoldLoop:
    """How a search folds.

    Every fold starts from the dense model's weights, and changes no weights of the session: it is the repair that
    `heal --fold` makes of a model without these blocks. So what is chosen is an ordinary plan.

    Attributes:
        every: blocks removed between two folds.
        healing: settings and text of the folds.
    """

    every: int
    healing: Prepared

    @property
    def identity(self) -> dict[str, Any]:
        """All that the repaired models depend on, besides the dense model and the removed blocks."""
        settings, text = self.healing.settings, self.healing.text.fingerprint
        own = {name: getattr(settings, name) for name in FOLD_SETTINGS}
        own |= {"version": VERSION, "every": self.every, "text": text}
        return {"folds": own | {"data": [list(pair) for pair in settings.texts]}}

    def steps(self, blocks: Blocks, structure: Structure, probe: Probe, journal: Journal | None) -> Steps:
        """The steps of a search of a dense model, given its blocks, its probe and the journal of the run."""
        settings, text = self.healing.settings, self.healing.text
        assert settings.fold is not None

        def repaired(removed: tuple[int, ...]) -> Probe:
            model = repaired_model(blocks.model, removed, settings, text, probe.say)
            kept = [block for block in range(len(blocks)) if block not in removed]
            # Not by the folded weights: computed again, on another number of threads, they may have other last bits.
            own = journal.of_step(len(removed), {"removed": list(removed)}) if journal else None
            return probe.of_model(
                Blocks(model), own, lambda more: structure.refusal((*removed, *(kept[block] for block in more)))
            )

        return Steps(self.every, settings.fold, repaired)
