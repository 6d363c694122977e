"""Refit: the last linear map of a block, fitted again by least squares."""

from typing import ClassVar

import torch
from torch import Tensor

from streamliner.heal.folds.regression import Ridge
from streamliner.model.last_map import LastMap


class Refit:
    """Add to the last linear map of a block what makes the stream after it most like the dense model's.

    With z its inputs and R the dense stream minus the model's own, D minimises |zD - R|^2 plus a ridge penalty, and
    W <- W + D'. A bias is fitted too where there is one. It has as many unknowns for each channel as the map has
    inputs, so it needs many tokens.

    References:
        Ridge regression on hidden states, as ReplaceMe (arXiv 2505.02819) does on what the map writes.
    """

    needs_linear: ClassVar[bool] = True
    tokens_per_input: ClassVar[int] = 32

    def __init__(self, last: LastMap, bias: bool) -> None:
        self._last, self._bias, self._sums = last, bias, Ridge()

    def add(self, given: Tensor, made: Tensor, missing: Tensor) -> None:
        """Add tokens: what the map was given, what it made, and what the stream lacks, (tokens, channels) each."""
        features = torch.cat([given, torch.ones_like(given[:, :1])], 1) if self._bias else given
        self._sums.add(features, missing / self._last.scale)

    def solve(self, penalty: float, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs), and bias."""
        change = self._sums.solve(penalty).T.cpu()
        if bias is None:
            return weight + change.to(weight), None
        return weight + change[:, :-1].to(weight), bias + change[:, -1].to(bias)
