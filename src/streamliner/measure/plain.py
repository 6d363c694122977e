"""The plain path: one forward of the whole model for each set of removed blocks. It defines what is right."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from streamliner.measure.counters import Counters
from streamliner.measure.loss import mean_divergences, next_token_losses
from streamliner.model.blocks import Blocks
from streamliner.model.fork import Removed
from streamliner.text.chat import token_ids


class PlainPath:
    """Forwards of the model, whose cost is added to `counters`."""

    def __init__(self, blocks: Blocks, counters: Counters) -> None:
        self._blocks, self._counters = blocks, counters

    def losses(self, windows: Tensor, removed: Removed, dense: Tensor | None = None) -> list[float]:
        """Loss of each window, (windows, tokens), without the blocks `removed`; with `dense`, the divergence from it.

        `dense` are the dense model's logits on these windows.
        """
        logits = self.logits(windows, removed) if dense is None or removed else dense
        found = next_token_losses(logits, windows) if dense is None else mean_divergences(dense, logits, windows)
        return found.tolist()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def logits(self, windows: Tensor, removed: Iterable[int] = (), **inputs: Any) -> Tensor:
        """Logits without the blocks `removed`, (windows, tokens, vocabulary); `inputs` go to the model's forward."""
        removed = tuple(removed)
        with self._blocks.bypass(removed):
            logits: Tensor = self._blocks.forward(token_ids(windows), **inputs).logits
        kept = [block for block in range(len(self._blocks)) if block not in removed]
        self._count(kept, len(windows))
        return logits

    @torch.inference_mode()
    def streams(self, windows: Tensor) -> list[Tensor]:
        """The dense model's residual stream at each depth, (windows, tokens, hidden...) N + 1 times.

        A block that is not run on text has the same stream before and after it.
        """
        streams = self._blocks.streams(token_ids(windows), range(len(self._blocks) + 1))
        self._count(range(len(self._blocks)), len(windows))
        for index in self._blocks.unread:
            streams[index + 1] = streams[index]
        return [streams[depth] for depth in sorted(streams)]

    def _count(self, kept: Sequence[int], windows: int) -> None:
        self._counters.forwards += 1
        self._counters.block_forwards += len(kept) * windows
        self._counters.bytes_read += sum(self._blocks.offloaded_bytes[block] for block in kept)
