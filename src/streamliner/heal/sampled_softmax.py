"""Losses of the head over a part of a large vocabulary: frequent tokens, and a random sample of all others."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.model.head_rows import HeadRows
from streamliner.text.stream import SHUFFLE, TrainingText

MOST_READ = 4096
"""Windows of each source at most whose tokens are counted first, as a text may be endless."""


@dataclass(frozen=True)
class Drawn:
    """The tokens that a forward computes logits of.

    Attributes:
        tokens: their ids, (drawn,).
        windows: the input, (windows, tokens), with each id's place in `tokens`.
        correction: what to add to their logits, (drawn,): the log of how many tokens each one stands for.
    """

    tokens: Tensor
    windows: Tensor
    correction: Tensor


class SampledSoftmax:
    """Lets a model's head compute the logits of some tokens only, which is faster by as much as these are fewer.

    With T the text's frequent tokens and those of the windows at work, and S a sample of n of all R other tokens, the
    sum over the vocabulary that a softmax divides by becomes

        sum over T of exp(z) + R / n * sum over S of exp(z)

    which it is in the mean; its logarithm, and so the loss, is a little too small. Another sample is drawn for other
    windows, always the same one for the same windows, so that a continued run has the losses of an undisturbed one.

    Raises UnsupportedModelError if the head cannot be narrowed.

    Args:
        blocks: of the model; its head must not change in training.
        frequent: ids of the tokens that are in T for all windows.
        sample: n.
        seed: of the samples.

    References:
        Jean et al., arXiv 1412.2007, section 3; here the sample is uniform, as all that is frequent is in T.
    """

    def __init__(self, blocks: Blocks, frequent: Tensor, sample: int, seed: int) -> None:
        self._head, self._sample, self._seed = HeadRows(blocks), sample, seed
        self._frequent = torch.zeros(self._head.count, dtype=torch.bool)
        self._frequent[frequent] = True

    @contextmanager
    def drawn_for(self, input_ids: Tensor) -> Iterator[Drawn]:
        """While open, the model's logits are those of the tokens that are drawn for these windows."""
        drawn = self._draw(input_ids.cpu())
        with self._head.only(drawn.tokens):
            yield Drawn(*(each.to(input_ids.device) for each in (drawn.tokens, drawn.windows, drawn.correction)))

    def _draw(self, input_ids: Tensor) -> Drawn:
        inside = self._frequent.clone()
        inside[input_ids] = True
        own, others = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        random = torch.Generator().manual_seed(self._seed + int(input_ids.sum()))
        sample = others[torch.randperm(len(others), generator=random)[: self._sample]]
        places = torch.cumsum(inside, 0) - 1
        correction = torch.zeros(len(own) + len(sample))
        correction[len(own) :] = math.log(len(others) / len(sample)) if len(sample) else 0.0
        return Drawn(torch.cat([own, sample]), places[input_ids], correction)


def make_sampled_softmax(
    blocks: Blocks, settings: HealSettings, text: TrainingText, steps: int, say: Callable[[str], None]
) -> SampledSoftmax | None:
    """What `--sampled-softmax` asks for; None without it, and where it would leave out little of the vocabulary."""
    if not settings.sampled_softmax:
        return None
    windows = min(MOST_READ, steps * settings.batch_windows + SHUFFLE)
    frequent = text.frequent_tokens(settings.sampled_softmax, windows)
    vocabulary, computed = blocks.config.vocab_size, len(frequent) + settings.sampled_softmax
    parts = f"{len(frequent):,} frequent ones of the text and {settings.sampled_softmax:,} random others"
    if 2 * computed > vocabulary:
        say(f"The losses are over the whole vocabulary: {parts} are more than half of its {vocabulary:,} tokens.")
        return None
    say(f"The losses are over {computed:,} of {vocabulary:,} tokens: {parts}.")
    return SampledSoftmax(blocks, frequent, settings.sampled_softmax, settings.seed)
