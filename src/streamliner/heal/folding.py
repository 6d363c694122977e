"""Repair a cut model in closed form, block by block from the bottom; no new parameters, no training."""

import copy
import itertools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamliner.errors import HealingError
from streamliner.heal.folds.fitting import Fit
from streamliner.heal.folds.fold import Fold
from streamliner.heal.folds.gain import Gain
from streamliner.heal.folds.neurons import Neurons, Pool, find_pool
from streamliner.heal.folds.refit import Refit
from streamliner.heal.folds.replaceme import ReplaceMe
from streamliner.heal.gaps import Gap, find_gaps
from streamliner.heal.graft import Graft, check_not_shared, check_one_stream
from streamliner.heal_settings import HealSettings
from streamliner.measure.loss import text_loss
from streamliner.model.devices import enough_memory
from streamliner.model.last_map import LastMap, find_last_map
from streamliner.text.chat import counted, token_ids
from streamliner.text.stream import TrainingText

FOLDS: dict[str, type[Fold]] = {"refit": Refit, "gain": Gain, "replaceme": ReplaceMe, "neurons": Neurons}
"""Repairs by name."""
AUTO = "auto"
"""Neurons where a block can take some over, refit for other linear maps, with gain where a norm follows; gain alone for
norms of something else."""
ROUNDS = 4
"""How often at most a linear map and the norm after it are fitted in turn: each changes what the other should be."""
PENALTIES = (0.05, 0.5)
"""Ridge penalties that are tried; the loss on held-out windows chooses."""
MOST_KEPT = 1_000_000_000
"""Bytes of residual streams that are kept from one block to the next; if they need more, they are computed again."""
MOST_TRIED = 64
"""Tokens on which the last map of a block is looked for."""
CHOOSING = 8
"""Windows by which neurons are chosen as candidates."""
VERSION = 3
"""Of the arithmetic of folds; a search whose losses are those of folded models continues only with the same."""


@dataclass(frozen=True)
class Folded:
    """A repair that was tried.

    Attributes:
        block: whose last map was fitted, by its index in the dense model.
        fold: name of the repair.
        depth: where the stream was made most like the dense model's.
        module: path of the map within the block.
        penalty: the ridge penalty with the least loss.
        loss_before, loss_after: on the held-out windows, nats per token, `loss_after` with the best penalty.
        kept: whether it stayed, as it lowers that loss.
        tokens: of the windows that it was fitted on.
        collecting, solving: seconds for the sums, and for the solutions and their losses.
    """

    block: int
    fold: str
    depth: int
    module: str
    penalty: float
    loss_before: float
    loss_after: float
    kept: bool
    tokens: int
    collecting: float
    solving: float


@dataclass
class Folding:
    """Repairs the healed model of a graft: `graft.networks` gets changed copies of kept blocks.

    Each repair is made on the model with those below it, and stays only if it lowers the mean loss on the held-out
    windows of the text, which has some of each source.

    Args:
        graft: without networks or adapters.
        text: where windows come from.
        name: of FOLDS, or AUTO.
        tokens: about how many tokens to fit on; None for as many as the fold needs for its number of unknowns.
        later: fit every kept block from the first gap on, not only the one before each gap.
        say: called with messages.
    """

    graft: Graft
    text: TrainingText
    name: str
    tokens: int | None
    later: bool
    say: Callable[[str], None]
    _drawn: list[Tensor] = field(default_factory=list, init=False)
    # A depth and each window's stream there, so that what is below need not run again: of the dense model for the
    # windows to fit on, of the healed model for the held-out ones too. Lists are empty where they would be too large.
    _dense: tuple[int, list[Tensor]] | None = field(default=None, init=False)
    _own: tuple[int, list[Tensor]] | None = field(default=None, init=False)

    def run(self) -> list[Folded]:
        """Repair from the bottom to the top; returns what was tried.

        Raises HealingError if the architecture has no place for it, or there are no held-out windows.
        """
        check_one_stream(self.graft.blocks)
        if not len(self.text.validation):
            raise HealingError("A fold needs held-out windows to judge it.", "Give --validation-windows 16.")
        maps = {block: last for block, _ in self._places() if (last := self._last_map(block))}
        check_not_shared(self.graft.blocks, [*maps], self.graft.removed)
        done: list[Folded] = []
        loss = self._loss()
        for block, depth in self._places():
            if block not in maps:
                self.say(f"Block {block} has no linear map or norm that writes into the stream: it stays as it is.")
                continue
            pool = self._pool(block, maps[block])
            for number, (name, last) in enumerate(self._moves(maps[block], pool)):
                found = self._fit(block, depth, name, last, pool, loss)
                loss = min(loss, found.loss_after)
                what = "" if found.kept else ", so it stays as it is"
                losses = f"loss on held-out windows {found.loss_before:.4f} -> {found.loss_after:.4f}"
                self.say(f"Block {block}, {found.fold} of {found.module}: {losses}{what}.")
                done.append(found)
                if number and not found.kept:
                    break  # nor would the other one help again
        return done

    def _moves(self, last: LastMap, pool: Pool | None) -> list[tuple[str, LastMap]]:
        """The folds of one block, in turn, by name."""
        if self.name == "gain" or not (last.is_linear or last.linear):
            return [("gain", last)]
        linear = last.linear or last
        name = "neurons" if pool else "refit" if self.name in (AUTO, "neurons") else self.name
        return [(name, linear)] if last.is_linear else [(name, linear), ("gain", last)] * ROUNDS

    def _pool(self, block: int, last: LastMap) -> Pool | None:
        """The neurons of removed blocks that a block before a gap can take over, where they are wanted."""
        if self.name not in (AUTO, "neurons") or not (linear := last if last.is_linear else last.linear):
            return None
        if (gap := self._gaps().get(block)) is None:
            return None
        removed = [each for each in range(gap.start, gap.stop) if each in self.graft.removed]
        pool = find_pool(self.graft.blocks, block, linear, removed, self.text.validation[:1, :MOST_TRIED])
        if pool is None and self.name != AUTO:
            self.say(f"No neurons of the removed blocks fit into block {block} as they are: it gets a refit.")
        return pool

    def _gaps(self) -> dict[int, Gap]:
        """The gaps by the block that makes up for each."""
        return {gap.places[-1]: gap for gap in find_gaps(self.graft.removed, len(self.graft.blocks))}

    def _places(self) -> list[tuple[int, int]]:
        """Blocks to fit, from the bottom, and the depths where their streams are compared."""
        gaps = {block: gap.stop for block, gap in self._gaps().items()}
        kept = [index for index in range(min(gaps), len(self.graft.blocks)) if index not in self.graft.removed]
        return [(index, gaps.get(index, index + 1)) for index in kept if self.later or index in gaps]

    def _last_map(self, block: int) -> LastMap | None:
        last = find_last_map(self.graft.blocks, block, self.text.validation[:1, :MOST_TRIED])
        if self.name == AUTO:
            return last
        if last is not None and (last.is_linear or last.linear or not FOLDS[self.name].needs_linear):
            return last
        name = type(self.graft.blocks.model).__name__
        if last is None:
            raise HealingError(
                f"Block {block} of {name} has no linear map or norm that writes into the stream: no place to fold.",
                "Its weights are quantised, or experts write into the stream. Heal it with --network block.",
            )
        raise HealingError(
            f"Block {block} of {name} ends in a norm without a linear map before it, {last.path}: {self.name} fits "
            "a linear map.",
            "Use --fold gain.",
        )

    def _fit(self, block: int, depth: int, name: str, last: LastMap, pool: Pool | None, loss: float) -> Folded:
        """Fit one map of a block, and keep that if it lowers the loss."""
        graft = self.graft
        network = copy.deepcopy(graft.networks.get(block, graft.blocks.modules[block]))
        method = Neurons(last, network, pool) if name == "neurons" and pool else FOLDS[name](last, network)
        # A norm is fitted on the tokens of the map before it, whose streams may be kept.
        windows = self._windows(self.tokens or max(method.wanted, len(self._drawn) * self.text.sequence_length))
        without, graft.networks = graft.networks, {**graft.networks, block: network}
        begin = time.perf_counter()
        fit = Fit(graft, block, depth, method)
        if isinstance(method, Neurons):
            some = torch.split(windows[:CHOOSING], 1)
            before = (self._own_streams(number, ids, block) if block else None for number, ids in enumerate(some))
            method.choose([fit.given(ids, state) for ids, state in zip(some, before, strict=True)])
        states = self._collect(windows, fit)
        collected = time.perf_counter()
        tried: list[tuple[float, float, str]] = []
        for fold, penalty in itertools.product(method.names, PENALTIES):
            method.put(penalty, fold)
            tried.append((self._loss((block, states) if states else None), penalty, fold))
        after, penalty, name = min(tried)
        if kept := after < loss:
            method.put(penalty, name)
        else:
            graft.networks = without
        times = collected - begin, time.perf_counter() - collected
        return Folded(block, name, depth, last.path, penalty, loss, after, kept, windows.numel(), *times)

    @torch.no_grad()
    def _collect(self, windows: Tensor, fit: Fit) -> list[Tensor]:
        """Add the tokens of all windows to a fold's sums; returns the streams of held-out windows before the block."""
        held_out, block, depth = self.text.validation, fit.block, fit.depth
        states: list[Tensor] = []  # of the healed model before the block, for the held-out windows and the others
        targets: list[Tensor] = []  # of the dense model after the gap, for the others
        needed = 2 * (len(held_out) + len(windows)) * windows.shape[1] * self.graft.blocks.stream_bytes
        fits = needed <= MOST_KEPT and block > 0
        # Below all that was removed both models have one stream.
        wanted = {block} if self._own is None and 0 < block < min(self.graft.removed) else set()
        for number, ids in enumerate(torch.split(torch.cat([held_out, windows]), 1), -len(held_out)):
            dense = self._dense_streams(number, ids, wanted | ({depth} if number >= 0 else set()))
            state = None
            if block:
                state = dense[block] if wanted else self._own_streams(number, ids, block)
                if fits or number < 0:
                    states.append(state)
            if number >= 0:
                fit.add(ids, state, dense[depth])
                if fits:
                    targets.append(dense[depth])
        self._dense, self._own = (depth, targets), (block, states if fits else [])
        return states[: len(held_out)]

    def _dense_streams(self, number: int, ids: Tensor, depths: set[int]) -> dict[int, Tensor]:
        with self._from(self._dense, number):
            return self.graft.dense_streams(ids, depths)

    def _own_streams(self, number: int, ids: Tensor, depth: int) -> Tensor:
        with self.graft.in_place(), self._from(self._own, number + len(self.text.validation)):
            return self.graft.blocks.streams(ids, {depth})[depth]

    def _from(self, kept: tuple[int, list[Tensor]] | None, number: int) -> AbstractContextManager[None]:
        """While open, forwards of a window begin at the depth where its stream is kept, or at the bottom."""
        if kept is None or not 0 <= number < len(kept[1]):
            return nullcontext()
        return self.graft.blocks.resumed(kept[0], kept[1][number])

    def _windows(self, tokens: int) -> Tensor:
        """Windows of at least so many tokens in all, the same for each block: (windows, tokens)."""
        count = math.ceil(tokens / self.text.sequence_length)
        while len(self._drawn) < count:
            self._drawn.append(token_ids(self.text.batch(1))[0])
        return torch.stack(self._drawn[:count])

    def _loss(self, start: tuple[int, list[Tensor]] | None = None) -> float:
        """Of the healed model on the held-out windows, from streams at a depth on if they are given.

        Where only answers count, of these: a fit takes all tokens, but a repair is judged as training would be.
        """
        counts = counted(self.text.held_out).sum(1)
        some = counts.nonzero()[:, 0]
        if start is not None:
            start = start[0], [start[1][window] for window in some]
        with self.graft.in_place():
            losses = text_loss(self.graft.blocks, self.text.held_out[some], start=start).per_window
        return (torch.tensor(losses, dtype=torch.float64) @ counts[some].double() / counts.sum()).item()


def fold(graft: Graft, settings: HealSettings, text: TrainingText, say: Callable[[str], None]) -> list[Folded]:
    """Repair the healed model of a graft as `settings.fold` says; see `Folding`."""
    assert settings.fold is not None
    say(f"Folding ({settings.fold}), from the bottom to the top ...")
    later, tokens = settings.fold_blocks == "later", settings.num_fold_tokens
    with enough_memory("folding", "--fold gain, fewer --fold-tokens or --dtype bfloat16"):
        return Folding(graft, text, settings.fold, tokens, later, say).run()
