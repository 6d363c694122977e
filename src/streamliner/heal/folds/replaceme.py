"""ReplaceMe: Shopkhoev et al., "ReplaceMe: Network Simplification via Depth Pruning and ... Linearization"."""

from torch import Tensor

from streamliner.heal.folds.regression import Ridge


class ReplaceMe:
    """A linear transformation of what the last linear map of a block writes, folded into that map.

    With y what it writes and R the dense stream minus the model's own, D minimises |yD - R|^2 plus a ridge penalty:
    the transformation is A = I + D, and W <- A'W.

    References:
        arXiv 2505.02819, section 3 (the least-squares variant).
    """

    needs_linear = True
    tokens_per_input = 32
    regression = Ridge

    @staticmethod
    def features(given: Tensor, made: Tensor, *, bias: bool) -> Tensor:
        """What R is fitted on, from what the map was given and what it made, (tokens, channels) each."""
        return made

    @staticmethod
    def changed(solution: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs), and bias."""
        return weight + solution.T @ weight, None if bias is None else bias + solution.T @ bias
