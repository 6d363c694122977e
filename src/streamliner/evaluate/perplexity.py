"""Perplexity of a text, with everything stated that it depends on: tokens, window, stride, BOS, standard error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamliner.measure.loss import Loss, text_loss
from streamliner.model.blocks import Blocks
from streamliner.text.windows import TextWindows


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of one text.

    Attributes:
        loss: of each window; `loss.perplexity` is the perplexity.
        text: where the text came from and how it was cut into windows (`TextWindows.provenance`).
    """

    loss: Loss
    text: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        loss = {"loss": self.loss.mean, "standard_error": self.loss.standard_error}
        return {"perplexity": self.loss.perplexity, **loss, "window_losses": list(self.loss.per_window), **self.text}


def perplexity(blocks: Blocks, text: TextWindows, on_progress: Callable[[int, int], None] | None = None) -> Loss:
    """Measure the loss on each window, one at a time; `Loss.perplexity` is the perplexity."""
    return text_loss(blocks, text.windows, first=text.first, on_progress=on_progress)
