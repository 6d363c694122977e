"""Gain: a factor for each channel of what the last map of a block writes; and a linear map before a norm."""

import torch
from torch import Tensor, nn

from streamliner.heal.folds.fold import Fold
from streamliner.heal.folds.regression import RidgePerChannel
from streamliner.model.last_map import LastMap

NO_FACTOR = 1e-3
"""A norm's channels whose factor is smaller than this part of the largest: what goes into them reaches nothing."""


class Gain(Fold):
    """Factors 1 + g for what the last map of a block, a linear one or a norm, writes into each channel.

    With f what it writes and R the dense stream minus the model's own, g = sum f R / (sum f^2 + penalty mean(sum f^2)).
    One unknown for each channel, so it needs few tokens. After a refit it gives a norm back the length that it holds.
    """

    names = ("gain",)
    needs_linear = False
    tokens_per_input = 8
    regression = RidgePerChannel

    def features(self, given: Tensor, made: Tensor) -> Tensor:
        """What the map makes."""
        return made

    def changed(self, solution: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight, (outputs, inputs) or (channels,), and bias, each channel with its factor."""
        factor = 1 + solution
        weight = factor.view(-1, *[1] * (self.weight.ndim - 1)) * self.weight
        return weight, None if self.bias is None else factor * self.bias


def through_norm(
    norm: LastMap, network: nn.Module, given: Tensor, written: Tensor, features: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Features and targets of a linear map whose output, (tokens, channels), goes through a norm.

    The norm writes f_t w * given, with w its factors and f_t one number for each token. That is held: so D, added to
    the map, adds w * (f_t features D), and is fitted to targets / w. The change of f_t is left to the norm's own fold.
    """
    factors, bias = norm.weights(network)
    scaled = given * factors
    written = written if bias is None else written - bias
    per_token = (written * scaled).sum(1) / scaled.square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    usable = factors.abs() > NO_FACTOR * factors.abs().max()
    return features * per_token[:, None], torch.where(usable, targets / factors, 0.0)
