"""A cut model in memory, repaired in closed form: what a search measures that folds after every few blocks."""

from collections.abc import Callable

from streamliner.cut.memory import cut_model
from streamliner.cut.verification import sample_tokens
from streamliner.heal.folding import fold
from streamliner.heal.graft import Graft
from streamliner.heal.merge import merge
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.text.stream import TrainingText
from streamliner.types import PreTrainedModel


def repaired_model(
    dense: PreTrainedModel,
    removed: tuple[int, ...],
    settings: HealSettings,
    text: TrainingText,
    say: Callable[[str], None],
) -> PreTrainedModel:
    """`dense` without the blocks `removed`, folded as `settings.fold` says: what cutting and then folding gives.

    `dense` stays as it is; the result shares all weights with it that did not change. The text is afterwards where it
    was, so the next fold is made on the same windows.

    Raises:
        HealingError: the architecture has no place for the fold.
    """
    changed = cut_model(dense, ())  # the same model, whose blocks get weights of their own where they change
    graft, position = Graft(Blocks(changed), (), {}, removed), text.state()
    fold(graft, settings, text, say)
    text.load(*position)
    merge(graft, None, sample_tokens(changed.config))
    return cut_model(changed, removed)
