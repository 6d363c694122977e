"""Ridge regression from sums alone: memory does not grow with the number of tokens."""

import torch
from torch import Tensor

from streamliner.model.devices import in_float64


class Ridge:
    """Least squares of many targets on the same features, by the normal equations.

    With X (tokens, features) and R (tokens, targets), D = (X'X + penalty mean(diag X'X) I)^-1 X'R makes XD like R.
    Tokens that are added together, those of a window, are multiplied in their own precision; sums are in float64.
    """

    def __init__(self) -> None:
        self._features: Tensor | None = None  # X'X
        self._targets: Tensor | None = None  # X'R

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add tokens, (tokens, features) and (tokens, targets)."""
        squares, products = in_float64(features.T @ features), in_float64(features.T @ targets)
        self._features = squares if self._features is None else self._features.add_(squares)
        self._targets = products if self._targets is None else self._targets.add_(products)

    @property
    def size(self) -> int:
        """The number of features."""
        assert self._features is not None
        return len(self._features)

    def solve(self, penalty: float, some: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        """D, (features, targets), in float32; on some features alone, by their indices.

        The penalty is for how far D is from `prior`, (features, targets), 0 by default.
        """
        return self._solved(penalty, some, prior)[0].float()

    def worth(self, penalty: float, some: Tensor, prior: Tensor) -> Tensor:
        """By how much the least sum of squares, and penalty, rises without each of some features: (features,)."""
        solution, factor = self._solved(penalty, some, prior)
        return solution.square().sum(1) / torch.cholesky_inverse(factor).diagonal()

    def _solved(self, penalty: float, some: Tensor | None, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """D, and the Cholesky factor of X'X with the penalty."""
        assert self._features is not None
        assert self._targets is not None
        damped, targets = self._features, self._targets
        if some is None:
            damped = damped.clone()
        else:
            some = some.to(damped.device)
            damped, targets = damped[some][:, some], targets[some]
        if prior is not None:
            prior = prior.to(targets) if some is None else prior.to(targets)[some]
            targets = targets - damped @ prior
        diagonal = damped.diagonal()
        diagonal += penalty * diagonal.mean() + torch.finfo(torch.float32).tiny
        factor = torch.linalg.cholesky(damped)
        solution = torch.cholesky_solve(targets, factor)
        return solution if prior is None else solution + prior, factor


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
