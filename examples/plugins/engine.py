"""The `generate` of transformers as an engine: what most programs call, with its cost for each token."""

from collections.abc import Callable, Sequence

import torch

from streamliner.benchmark.engine import MemoryUse, TokenIds, clock_seconds
from streamliner.benchmark.workload import Workload
from streamliner.model.devices import best_device, wait_for
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter


class GenerateEngine:
    """Greedy `model.generate`, with the cache that it makes."""

    prompt_generates = True
    only_first_block = None  # it cannot bypass blocks, so no speed-up is expected from it

    @staticmethod
    def find_device(sessions: Sequence[Session]) -> str:
        """The device that all models go to."""
        return str(sessions[0].settings.device or best_device())

    def __init__(self, session: Session, device: str, workload: Workload, share: float, reporter: Reporter) -> None:
        self.model = session.load(reporter).model
        self.device, self.dtype = str(self.model.device), str(self.model.dtype).removeprefix("torch.")

    def prompt(self, ids: TokenIds) -> object:
        """Up to one new token."""
        return self.generate(ids, 1)

    def generate(self, ids: TokenIds, new_tokens: int) -> object:
        """Exactly `new_tokens` after each text."""
        tensor = torch.tensor(ids, device=self.model.device)
        return self.model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )

    def seconds(self, work: Callable[[], object]) -> float:
        """Until the device is done."""
        return clock_seconds(lambda: (work(), wait_for(self.model.device)))

    def memory_use(self, ids: TokenIds) -> MemoryUse:
        """The weights; the cache is not measured."""
        return MemoryUse(weight_bytes=sum(parameter.nbytes for parameter in self.model.parameters()))
