"""ReplaceMe: Shopkhoev et al., "ReplaceMe: Network Simplification via Depth Pruning and ... Linearization"."""

from typing import ClassVar

from torch import Tensor

from streamliner.heal.folds.regression import Ridge
from streamliner.model.last_map import LastMap


class ReplaceMe:
    """A linear transformation of what the last linear map of a block writes, folded into that map.

    With y what it writes and R the dense stream minus the model's own, D minimises |yD - R|^2 plus a ridge penalty:
    the transformation is A = I + D, and W <- A'W.

    References:
        arXiv 2505.02819, section 3 (the least-squares variant).
    """

    needs_linear: ClassVar[bool] = True
    tokens_per_input: ClassVar[int] = 32

    def __init__(self, last: LastMap, bias: bool) -> None:
        self._last, self._sums = last, Ridge()

    def add(self, given: Tensor, made: Tensor, missing: Tensor) -> None:
        """Add tokens: what the map was given, what it made, and what the stream lacks, (tokens, channels) each."""
        self._sums.add(made, missing / self._last.scale)

    def solve(self, penalty: float, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs), and bias."""
        change = self._sums.solve(penalty).T.to(weight)
        return weight + change @ weight, None if bias is None else bias + change @ bias
