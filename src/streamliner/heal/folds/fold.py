"""What all folds have in common: sums over tokens, and weights that follow from them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor, nn

from streamliner.heal.folds.regression import Ridge, RidgePerChannel
from streamliner.model.last_map import LastMap


class Fold(ABC):
    """One fold of one block: the last map of a changed copy of it, fitted on tokens that are given one after the other.

    Args:
        last: the map that is fitted.
        network: the copy, which `put` changes.

    Attributes:
        names: of the folds that its sums are enough for.
        needs_linear: whether the map must be linear; otherwise a norm will do.
        tokens_per_input: tokens to fit on by default, for each input of the map.
    """

    names: ClassVar[tuple[str, ...]] = ()
    needs_linear: ClassVar[bool] = True
    tokens_per_input: ClassVar[int] = 32
    regression: ClassVar[type[Ridge] | type[RidgePerChannel]] = Ridge

    def __init__(self, last: LastMap, network: nn.Module) -> None:
        self.last, self.network = last, network
        self.weight, self.bias = last.weights(network)
        self.sums = self.regression()

    @property
    def wanted(self) -> int:
        """Tokens to fit on by default."""
        return self.tokens_per_input * self.weight.shape[-1]

    def watched(self, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        """While open, each call of the copy gives `note` what `features` needs: an input, and what the map made."""
        return self.last.watched(self.network, note)

    @abstractmethod
    def features(self, given: Tensor, made: Tensor) -> Tensor:
        """What the stream is fitted on, from a call of `watched`, (tokens, channels) each."""

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add tokens: `features`, and what the stream lacks in units of what the map makes, (tokens, channels)."""
        self.sums.add(features, targets)

    def put(self, penalty: float, name: str) -> None:
        """Give the copy the weights that the sums and a ridge penalty lead to; `put` may follow with another one.

        The sums of one fold may be enough for others too: `name` is one of `names`.
        """
        self.last.set_weights(self.network, *self.changed(self.sums.solve(penalty).to(self.weight)))

    @abstractmethod
    def changed(self, solution: Tensor) -> tuple[Tensor, Tensor | None]:
        """The new weight, (outputs, inputs) or (channels,), and bias."""
