"""ReplaceMe: Shopkhoev et al., "ReplaceMe: Network Simplification via Depth Pruning and ... Linearization"."""

from torch import Tensor

from streamliner.heal.folds.fold import Fold


class ReplaceMe(Fold):
    """A linear transformation of what the last linear map of a block writes, folded into that map.

    With y what it writes and R the dense stream minus the model's own, D minimises |yD - R|^2 plus a ridge penalty:
    the transformation is A = I + D, and W <- A'W.

    References:
        arXiv 2505.02819, section 3 (the least-squares variant).
    """

    names = ("replaceme",)

    def features(self, given: Tensor, made: Tensor) -> Tensor:
        """What the map makes."""
        return made

    def changed(self, solution: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight, (outputs, inputs), and bias, transformed."""
        bias = None if self.bias is None else self.bias + solution.T @ self.bias
        return self.weight + solution.T @ self.weight, bias
