"""What to time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to time. SLEB's settings (arXiv 2402.09025, section 4) on a GPU, smaller ones on a CPU: see `usual`.

    Attributes:
        prompt_tokens: of the one prompt that is processed.
        batch_size, context_tokens, new_tokens: of generation: texts at once, their prompt, and what is generated.
        repeats: measurements of each model, in turn, behind one that does not count.
    """

    prompt_tokens: int
    batch_size: int
    context_tokens: int
    new_tokens: int
    repeats: int = 7

    @classmethod
    def usual(cls, device: str, most: int | None = None, **given: int | None) -> BenchmarkSettings:
        """The defaults for a device, but for what is given; the prompt no longer than `most`, what the models take."""
        on_gpu = {"prompt_tokens": 2048, "batch_size": 64, "context_tokens": 64, "new_tokens": 128}
        small = {"prompt_tokens": 256, "batch_size": 1, "context_tokens": 32, "new_tokens": 32}
        chosen = small if device.startswith(("cpu", "mps")) else on_gpu
        chosen["prompt_tokens"] = min(chosen["prompt_tokens"], most or chosen["prompt_tokens"])
        return cls(**(chosen | {name: value for name, value in given.items() if value is not None}))

    @property
    def longest(self) -> int:
        """Positions that the longest text takes, with a new token behind the prompt."""
        return max(self.prompt_tokens + 1, self.context_tokens + self.new_tokens)
