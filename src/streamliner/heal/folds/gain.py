"""Gain: a factor for each channel of what the last map of a block writes."""

from torch import Tensor

from streamliner.heal.folds.regression import RidgePerChannel


class Gain:
    """Factors 1 + g for what the last map of a block, a linear one or a norm, writes into each channel.

    With f what it writes and R the dense stream minus the model's own, g = sum f R / (sum f^2 + penalty mean(sum f^2)).
    One unknown for each channel, so it needs few tokens. After a refit it gives a norm back the length that it holds.
    """

    needs_linear = False
    tokens_per_input = 8
    regression = RidgePerChannel

    @staticmethod
    def features(given: Tensor, made: Tensor, *, bias: bool) -> Tensor:
        """What R is fitted on, from what the map was given and what it made, (tokens, channels) each."""
        return made

    @staticmethod
    def changed(solution: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs) or (channels,), and bias."""
        factor = 1 + solution
        return factor.view(-1, *[1] * (weight.ndim - 1)) * weight, None if bias is None else factor * bias
