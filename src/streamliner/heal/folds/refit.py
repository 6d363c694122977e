"""Refit: the last linear map of a block, fitted again by least squares."""

import torch
from torch import Tensor

from streamliner.heal.folds.regression import Ridge


class Refit:
    """Add to the last linear map of a block what makes the stream after it most like the dense model's.

    With z its inputs and R the dense stream minus the model's own, D minimises |zD - R|^2 plus a ridge penalty, and
    W <- W + D'. A bias is fitted too where there is one. It has as many unknowns for each channel as the map has
    inputs, so it needs many tokens.

    References:
        Ridge regression on hidden states, as ReplaceMe (arXiv 2505.02819) does on what the map writes.
    """

    needs_linear = True
    tokens_per_input = 32
    regression = Ridge

    @staticmethod
    def features(given: Tensor, made: Tensor, *, bias: bool) -> Tensor:
        """What R is fitted on, from what the map was given and what it made, (tokens, channels) each."""
        return torch.cat([given, torch.ones_like(given[:, :1])], 1) if bias else given

    @staticmethod
    def changed(solution: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs), and bias."""
        change = solution.T
        return (weight + change, None) if bias is None else (weight + change[:, :-1], bias + change[:, -1])
