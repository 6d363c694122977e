"""Next-token loss, perplexity, and divergence of next-token distributions."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.model.blocks import Blocks
from streamliner.text.chat import counted, token_ids

POSITIONS_AT_ONCE = 512
"""Positions whose logits are converted to float32 at once: 512 x 262k vocabulary entries take half a gigabyte."""
ROW_BYTES = 8_000_000
"""Bytes of such a copy on a CPU. The C library gives larger ones back to the system and has to ask for them again: with
512 positions of 262k words cross-entropy took six times as long."""

HEAD_BYTES = 500_000_000
"""Bytes that logits, with the copies that cross-entropy makes, may take in `text_loss`."""


@dataclass(frozen=True)
class Loss:
    """Mean next-token cross-entropy in nats per token; all windows have the same number of predictions."""

    per_window: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over all predictions."""
        return fmean(self.per_window)

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over windows; NaN for one window, or where one is not finite."""
        n = len(self.per_window)
        finite = all(map(math.isfinite, self.per_window))
        return stdev(self.per_window) / math.sqrt(n) if n > 1 and finite else math.nan

    @property
    def perplexity(self) -> float:
        """`exp(mean)`, infinite where that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


@torch.no_grad()  # not inference mode: what a model caches here may later be trained through
def text_loss(
    blocks: Blocks,
    windows: Tensor,
    *,
    first: int = 0,
    start: tuple[int, Sequence[Tensor]] | None = None,
    at_once: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Loss:
    """The model's loss on each window. `.perplexity` of the result is its perplexity.

    The model is measured as it is now: inside `blocks.bypass(removed)`, without these blocks.

    Args:
        blocks: of the model.
        windows: token ids, (windows, tokens), those that do not count as ~id.
        first: the first position that predicts; the positions before it are context.
        start: a depth, and the residual stream there of each window, (1, tokens, hidden): what is below does not run.
        at_once: windows in one forward; with `start` one.
        on_progress: called with (windows done, windows).
    """
    fit = positions_that_fit(blocks, HEAD_BYTES)
    losses: list[float] = []
    for number, ids in enumerate(torch.split(windows, at_once)):
        with blocks.resumed(start[0], start[1][number]) if start else nullcontext():
            stream = blocks.streams(token_ids(ids), [len(blocks)])[len(blocks)]
        losses += head_losses(blocks, stream, ids, fit, first).tolist()
        if on_progress:
            on_progress(len(losses), len(windows))
    return Loss(tuple(losses))


def head_losses(blocks: Blocks, stream: Tensor, windows: Tensor, fit: int, first: int = 0) -> Tensor:
    """Mean loss of each window from the residual stream at depth N, (windows,) in float64.

    Args:
        blocks: of the model.
        stream: at depth N, (windows, tokens, hidden...).
        windows: token ids, (windows, tokens), those that do not count as ~id; (1, tokens) if all streams are of one.
        fit: positions whose logits may be in memory at once; ignored by models that compute all logits or none.
        first: the first position that predicts; the positions before it are context.
    """
    stream, losses = stream.to(blocks.stream_device), []
    ids, targets = token_ids(windows).to(blocks.device), windows[:, 1:].to(blocks.stream_device)
    for positions in _pieces(blocks, windows, fit, first):
        rows = max(1, fit // len(positions))
        parts = zip(
            *(torch.split(each.expand(len(stream), *each.shape[1:]), rows) for each in (stream, ids, targets)),
            strict=True,
        )
        found = [cross_entropies(blocks.logits(s, i, positions), t[:, positions]) for s, i, t in parts]
        losses.append(torch.cat(found))
    return _sums(losses) / counted(windows)[:, first:].sum(1)


def _sums(values: Sequence[Tensor]) -> Tensor:
    """Sums over all positions in float64, (rows,): pieces, each (rows, positions) in float32 on one device.

    On the CPU, as not all devices have float64, and at once: each time the CPU waits for the device.
    """
    return torch.cat(list(values), 1).cpu().double().sum(1)


def head_divergences(blocks: Blocks, dense: Tensor, rows: Tensor, window: Tensor, fit: int) -> Tensor:
    """Mean divergence of each row from the dense model on one window, (rows,) in float64; `divergence` in float32.

    Of the same positions as the loss. All rows are compared with the dense model's distributions of a piece of
    positions before those of the next piece are computed.

    Args:
        blocks: of the model.
        dense: the dense model's stream at depth N, (tokens, hidden...).
        rows: streams at depth N, (rows, tokens, hidden...).
        window: token ids, (tokens,), those that do not count as ~id.
        fit: as for `head_losses`.
    """
    dense, rows = (stream.to(blocks.stream_device) for stream in (dense, rows))
    ids, found = token_ids(window[None]).to(blocks.device), []
    for positions in _pieces(blocks, window[None], fit):
        log_p = functional.log_softmax(blocks.logits(dense[None], ids, positions)[0].float(), -1)
        of_rows: list[Tensor] = []
        for some in torch.split(rows, max(1, fit // len(positions))):
            logits = blocks.logits(some, ids.expand(len(some), -1), positions)
            of_rows += [_divergences(log_p, row) for row in logits]
        found.append(torch.stack(of_rows))
    return _sums(found) / counted(window[None]).sum()


def _pieces(blocks: Blocks, windows: Tensor, fit: int, first: int = 0) -> tuple[Tensor, ...]:
    """The positions whose predictions count in some window, as many at a time as fit, on the stream's device."""
    positions = (counted(windows)[:, first:].any(0).nonzero()[:, 0] + first).to(blocks.stream_device)
    return torch.split(positions, fit if blocks.by_position else max(1, len(positions)))


def rows_at_once(logits: Tensor) -> int:
    """Rows of logits, (..., vocabulary), to convert to float32 at once where these logits are."""
    if logits.device.type != "cpu":
        return POSITIONS_AT_ONCE
    threads = torch.get_num_threads()  # each takes whole rows
    return threads * max(1, ROW_BYTES // (4 * logits.shape[-1]) // threads)


def positions_that_fit(blocks: Blocks, budget: int, values: int = 3) -> int:
    """Positions whose logits, with cross-entropy's two copies in float32, fit `budget` bytes; at least one.

    For other work than cross-entropy, `values` is how many in float32 each entry of the vocabulary takes.
    """
    return max(1, budget // (int(blocks.config.vocab_size) * 4 * values))


def next_token_losses(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean loss of each window in float32: (windows, tokens, vocabulary), (windows, tokens) -> (windows,).

    Position t predicts token t + 1; the last position predicts nothing. Tokens that do not count are ~id.
    """
    return _sums([cross_entropies(logits[:, :-1], windows[:, 1:])]) / counted(windows).sum(1)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """In float32: (rows, positions, vocabulary), (rows, positions) -> (rows, positions). 0 for targets below 0."""
    targets = targets.to(logits.device).clamp(min=-1)
    losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    for row, target in enumerate(targets):  # the vocabulary stays the contiguous axis: five times faster on a CPU
        pieces = (torch.split(each, rows_at_once(logits)) for each in (losses[row], logits[row], target))
        for loss, predicted, chunk in zip(*pieces, strict=True):
            loss[:] = functional.cross_entropy(predicted.float(), chunk, reduction="none", ignore_index=-1)
    return losses


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum over the vocabulary of p (log p - log q), in nats: (..., vocabulary) twice -> (...).

    Args:
        p, q: log-probabilities.
    """
    return (p.exp() * (p - q)).sum(-1)


def mean_divergences(dense: Tensor, cut: Tensor, windows: Tensor) -> Tensor:
    """Mean divergence of `cut` from `dense` on each window, both logits, in float32.

    (windows, tokens, vocabulary) twice, (windows, tokens) -> (windows,). Of the same positions as the loss: not of the
    last, and not of those that predict a token which does not count.
    """
    sums = []
    for row, which in enumerate(counted(windows)):
        positions, found = which.nonzero()[:, 0].to(dense.device), []
        for some in torch.split(positions, rows_at_once(dense)):
            log_p = functional.log_softmax(dense[row, some].float(), -1)
            found.append(_divergences(log_p, cut[row, some]))
        sums.append(_sums([torch.cat(found)[None]]))
    return torch.cat(sums) / counted(windows).sum(1)


def _divergences(log_p: Tensor, logits: Tensor) -> Tensor:
    """The divergence of `logits`, (positions, vocabulary), at each position, (positions,) in float32."""
    pieces = zip(*(torch.split(each, rows_at_once(logits)) for each in (log_p, logits)), strict=True)
    return torch.cat([divergence(p, functional.log_softmax(q.float(), -1)) for p, q in pieces])
