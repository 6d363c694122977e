"""Ridge regression from sums alone: memory does not grow with the number of tokens."""

import torch
from torch import Tensor

from streamliner.model.devices import in_float64


class Ridge:
    """Least squares of many targets on the same features, by the normal equations in float64.

    With X (tokens, features) and R (tokens, targets), D = (X'X + penalty mean(diag X'X) I)^-1 X'R makes XD like R.
    """

    def __init__(self) -> None:
        self._features: Tensor | None = None  # X'X
        self._targets: Tensor | None = None  # X'R

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add tokens, (tokens, features) and (tokens, targets)."""
        x, r = in_float64(features), in_float64(targets)
        squares, products = x.T @ x, x.T @ r
        self._features = squares if self._features is None else self._features.add_(squares)
        self._targets = products if self._targets is None else self._targets.add_(products)

    def solve(self, penalty: float) -> Tensor:
        """D, (features, targets), in float32."""
        assert self._features is not None
        assert self._targets is not None
        damped = self._features.clone()
        diagonal = damped.diagonal()
        diagonal += penalty * diagonal.mean() + torch.finfo(torch.float32).tiny
        return torch.cholesky_solve(self._targets, torch.linalg.cholesky(damped)).float()


class RidgePerChannel:
    """The same with one feature for each target: D, (channels,) = sum f R / (sum f^2 + penalty mean(sum f^2))."""

    def __init__(self) -> None:
        self._features = self._targets = torch.zeros(())

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add tokens, (tokens, channels) each."""
        f, r = in_float64(features), in_float64(targets)
        self._features = self._features.to(f.device) + f.square().sum(0)
        self._targets = self._targets.to(f.device) + (f * r).sum(0)

    def solve(self, penalty: float) -> Tensor:
        """D, (channels,), in float32."""
        damped = self._features + penalty * self._features.mean() + torch.finfo(torch.float32).tiny
        return (self._targets / damped).float()
