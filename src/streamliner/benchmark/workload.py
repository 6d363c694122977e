"""The work that a benchmark times: how many tokens, and which."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from streamliner.model.devices import is_slow
from streamliner.model.session import Session
from streamliner.settings import BenchmarkSettings


@dataclass(frozen=True)
class Workload:
    """The numbers of a benchmark, complete for one device.

    Attributes:
        prompt_tokens: length of the one prompt that is processed.
        batch_size: texts that are generated at once.
        context_tokens: length of the prompt of each of these.
        new_tokens: tokens generated after each.
        repeats: rounds that count; one more before them warms up.
    """

    prompt_tokens: int
    batch_size: int
    context_tokens: int
    new_tokens: int
    repeats: int = 7

    @property
    def max_positions(self) -> int:
        """Positions of the longest text, with one new token after the prompt."""
        return max(self.prompt_tokens + 1, self.context_tokens + self.new_tokens)

    @property
    def generation_positions(self) -> int:
        """Positions of all texts that are generated at once."""
        return self.batch_size * (self.context_tokens + self.new_tokens)


ON_GPU = Workload(prompt_tokens=2048, batch_size=64, context_tokens=64, new_tokens=128)
"""SLEB's workload (arXiv 2402.09025, section 4)."""
ON_CPU = Workload(prompt_tokens=256, batch_size=1, context_tokens=32, new_tokens=32)
"""A smaller one, of seconds rather than minutes."""


def complete_workload(settings: BenchmarkSettings, device: str, longest_prompt: int) -> Workload:
    """The user's settings, with the defaults of a device where there are none, the prompt no longer than possible."""
    usual = ON_CPU if is_slow(device) else ON_GPU
    usual = replace(usual, prompt_tokens=min(usual.prompt_tokens, longest_prompt))
    given = {name: getattr(settings, name) for name in asdict(usual)}
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


def random_texts(sessions: Sequence[Session], workload: Workload) -> list[list[int]]:
    """Random token ids from the vocabulary that all models share, one row per text of the batch.

    Speed does not depend on the tokens, except where they choose the experts.
    """
    vocabulary = min(session.config.get_text_config(decoder=True).vocab_size for session in sessions)
    shape = (workload.batch_size, max(workload.prompt_tokens, workload.context_tokens))
    ids = torch.randint(vocabulary // 10, vocabulary // 2, shape, generator=torch.Generator().manual_seed(0))
    return ids.tolist()  # type: ignore[no-any-return]
