"""A cut model as a draft for its parent: speculative (assisted) generation.

The draft proposes a few tokens; the parent verifies them in one forward, accepts those that it agrees with, and adds
one of its own: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192). The
result is the parent's text, so a draft changes only the speed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from streamliner.measure.loss import HEAD_BYTES, positions_that_fit
from streamliner.model.blocks import Blocks
from streamliner.model.generate import write
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter

PROPOSED = (2, 4, 8)
"""Numbers of tokens that a draft proposes at a time."""

TEXT_KINDS = ("greedy", "sampled")
"""How the parent writes: greedily, and at temperature 1."""


@dataclass(frozen=True)
class Acceptance:
    """How often a parent accepts what a draft proposes, on text that the parent wrote.

    Attributes:
        acceptance_rate: share of proposed tokens that are accepted, given that those before them were.
        standard_error: of the rate, over texts; NaN for one text.
        tokens_per_verification: accepted tokens and the parent's own, by the number of proposed tokens: the mean over
            all places. In real use a round begins where the one before ended.
        positions: tokens of the parent's text that this was measured on.
    """

    acceptance_rate: float
    standard_error: float
    tokens_per_verification: dict[str, float]
    positions: int


@dataclass(frozen=True)
class Draft:
    """A model measured as a draft for another, on text that this parent wrote from prompts of a source."""

    model: str
    source: str
    parent: str
    greedy: Acceptance
    sampled: Acceptance


def write_texts(parent: Session, prompts: Tensor, new_tokens: int, reporter: Reporter) -> dict[str, Tensor]:
    """What the parent writes, by kind: (prompts, tokens of a prompt + `new_tokens`), the prompts included.

    It writes on beyond the end of a text. The seed of a sampled text is the number of its prompt.
    """
    blocks, texts = parent.load(reporter), {}
    gpus = [blocks.device] if blocks.device.type == "cuda" else []
    for kind in TEXT_KINDS:
        written: list[Tensor] = []
        with reporter.progress(f"{parent.source.name}: writing, {kind}") as progress, torch.random.fork_rng(gpus):
            for prompt in prompts:
                torch.manual_seed(len(written))
                written.append(write(blocks, prompt, new_tokens, sampled=kind == "sampled"))
                progress(len(written), len(prompts))
        texts[kind] = torch.stack(written)
    return texts


def measure_draft(
    parent: Session, draft: Session, texts: dict[str, Tensor], source: str, new_tokens: int, reporter: Reporter
) -> Draft:
    """Measure at each token that the parent wrote whether it would accept the draft's proposal.

    Greedy: accepted if it is the parent's token. Sampled at temperature 1: accepted with probability
    `sum over tokens of min(p, q)`, p of the parent and q of the draft (arXiv 2211.17192, section 3.2). Both models see
    the parent's text, as they do when proposals are accepted.
    `texts` are from `write_texts`, with the same `new_tokens`.
    """
    blocks, found = (parent.load(reporter), draft.load(reporter)), {}
    for kind in TEXT_KINDS:
        rows: list[Tensor] = []
        with reporter.progress(f"{draft.source.name}: as a draft, {kind}") as progress:
            for text in texts[kind]:
                rows.append(_accepted(*blocks, text[None], len(text) - new_tokens, sampled=kind == "sampled"))
                progress(len(rows), len(texts[kind]))
        found[kind] = _acceptance(torch.stack(rows))
    return Draft(draft.source.name, source, parent.source.name, **found)


@torch.no_grad()
def _accepted(parent: Blocks, draft: Blocks, text: Tensor, prompt: int, *, sampled: bool) -> Tensor:
    """Probability that the draft's proposal for each token after the prompt is accepted, (tokens,) in float64."""
    streams = [(blocks, blocks.streams(text, [len(blocks)])[len(blocks)]) for blocks in (parent, draft)]
    at_once, last, found = positions_that_fit(parent, HEAD_BYTES), text.shape[1] - 1, []
    for start in range(prompt - 1, last, at_once):
        positions = torch.arange(start, min(start + at_once, last))
        p, q = (blocks.logits(stream, text, positions)[0].float().cpu() for blocks, stream in streams)
        vocabulary = min(p.shape[-1], q.shape[-1])  # models of a family pad one vocabulary to different widths
        p, q = p[..., :vocabulary], q[..., :vocabulary]
        if sampled:
            found.append(torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1).clamp(max=1))
        else:
            found.append((q.argmax(-1) == text[0, positions + 1]).float())
    return torch.cat(found).double()


def _acceptance(accepted: Tensor) -> Acceptance:
    """Of the probabilities that proposals are accepted, (texts, tokens)."""
    texts, tokens = accepted.shape
    counts = [count for count in PROPOSED if 2 * count <= tokens]  # at least half of the tokens can be proposed at
    error = accepted.mean(1).std().item() / texts**0.5 if texts > 1 else math.nan
    per_check = {str(count): tokens_per_verification(accepted, count, max(counts)) for count in counts}
    return Acceptance(accepted.mean().item(), error, per_check, accepted.numel())


def tokens_per_verification(accepted: Tensor, proposed: int, room: int) -> float:
    """Mean of 1 + the number of proposals accepted in a row, over all places with at least `room` tokens left.

    `accepted` is (texts, tokens): the probability that a proposal there is accepted, given that those before were.
    """
    rows = [row[start : start + proposed] for row in accepted for start in range(len(row) - room + 1)]
    return 1 + torch.stack(rows).cumprod(1).sum(1).mean().item()
