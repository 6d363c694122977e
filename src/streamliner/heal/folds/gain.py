"""Gain: a factor for each channel of what the last map of a block writes."""

from typing import ClassVar

from torch import Tensor

from streamliner.heal.folds.regression import RidgePerChannel
from streamliner.model.last_map import LastMap


class Gain:
    """Factors 1 + g for what the last map of a block, a linear one or a norm, writes into each channel.

    With f what it writes and R the dense stream minus the model's own, g = sum f R / (sum f^2 + penalty mean(sum f^2)).
    One unknown for each channel: it needs few tokens, and is the repair for blocks that end in a norm (Gemma, OLMo 2).
    """

    needs_linear: ClassVar[bool] = False
    tokens_per_input: ClassVar[int] = 8

    def __init__(self, last: LastMap, bias: bool) -> None:
        self._last, self._sums = last, RidgePerChannel()

    def add(self, given: Tensor, made: Tensor, missing: Tensor) -> None:
        """Add tokens: what the map was given, what it made, and what the stream lacks, (tokens, channels) each."""
        self._sums.add(made, missing / self._last.scale)

    def solve(self, penalty: float, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs) or (channels,), and bias."""
        factor = 1 + self._sums.solve(penalty).to(weight)
        return factor.view(-1, *[1] * (weight.ndim - 1)) * weight, None if bias is None else factor * bias
