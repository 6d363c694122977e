"""A short range test: which learning rate lowers the validation loss most in a few steps."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the learning rate that is given."""
FEWEST, MOST, SHARE = 8, 50, 0.01
"""Steps for each rate: this share of the training, within these bounds."""


def steps_of_range_test(steps: int) -> int:
    """Steps for each rate, for a training of so many steps."""
    return min(MOST, max(FEWEST, round(SHARE * steps)))


def range_test(
    trainable: Mapping[str, nn.Parameter],
    rates: list[float],
    make_optimiser: Callable[[float], torch.optim.Optimizer],
    gradients: Callable[[int], None],
    loss: Callable[[], float],
    steps: int,
) -> dict[float, float]:
    """The loss after a few steps with each rate, which grows from step to step up to that rate.

    Weights stay as they are. Where the loss is not finite, it counts as infinite.

    Args:
        trainable: the parameters.
        rates: to try.
        make_optimiser: with a rate, of the parameters.
        gradients: computes the gradients of a step; the same for each rate.
        loss: on held-out windows.
        steps: for each rate.

    References:
        Smith, arXiv 1506.01186, section 3.3, which lets one rate grow; here every rate starts anew, as a rate that is
        too large would spoil the weights for those after it.
    """
    start = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    found: dict[float, float] = {}
    for rate in rates:
        optimiser = make_optimiser(rate)
        for step in range(steps):
            gradients(step)
            for group in optimiser.param_groups:
                group["lr"] = rate * (step + 1) / steps
            optimiser.step()
            optimiser.zero_grad()
        value = loss()
        found[rate] = value if math.isfinite(value) else math.inf
        for name, parameter in trainable.items():
            parameter.data.copy_(start[name])
    return found
