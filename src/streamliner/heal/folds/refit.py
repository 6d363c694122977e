"""Refit: the last linear map of a block, fitted again by least squares."""

import torch
from torch import Tensor

from streamliner.heal.folds.fold import Fold


class Refit(Fold):
    """Add to the last linear map of a block what makes the stream after it most like the dense model's.

    With z its inputs and R the dense stream minus the model's own, D minimises |zD - R|^2 plus a ridge penalty, and
    W <- W + D'. A bias is fitted too where there is one. It has as many unknowns for each channel as the map has
    inputs, so it needs many tokens.

    References:
        Ridge regression on hidden states, as ReplaceMe (arXiv 2505.02819) does on what the map writes.
    """

    names = ("refit",)

    def features(self, given: Tensor, made: Tensor) -> Tensor:
        """The map's inputs, and a column of ones for its bias."""
        return given if self.bias is None else torch.cat([given, torch.ones_like(given[:, :1])], 1)

    def changed(self, solution: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight, (outputs, inputs), and bias with the solution added."""
        change = solution.T
        if self.bias is None:
            return self.weight + change, None
        return self.weight + change[:, :-1], self.bias + change[:, -1]
