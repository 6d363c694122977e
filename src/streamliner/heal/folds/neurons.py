"""Neurons: a block before a gap takes over neurons of the removed blocks."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.heal.folds.fold import Fold
from streamliner.heal.folds.regression import Ridge
from streamliner.model.blocks import Blocks
from streamliner.model.last_map import LastMap, find_norm_before
from streamliner.model.parts import GATED, find_part, gated_parts, watched

FOREIGN = 2
"""Neurons of removed blocks that are candidates, for each neuron of the block."""
MOST = 16_384
"""Candidates at most: the sums are a square matrix of so many rows, three times in float64."""
ROUNDS = 4
"""In how many rounds candidates are left out; each ranks those that are left anew."""
RANKING_PENALTY = 0.02
"""Ridge penalty of the fits that rank."""
TOLERANCE = 1e-3
"""Largest relative difference, in float32, of a feed-forward part and the same neurons in another block's."""


@dataclass(frozen=True)
class Source:
    """The feed-forward part of a removed block.

    Attributes:
        part: the module.
        scale: its norm's factors divided by those of the block that takes over neurons, (channels,).
    """

    part: nn.Module
    scale: Tensor


@dataclass(frozen=True)
class Pool:
    """Where a block can take neurons from: parts like its own, at `path` in each block."""

    path: str
    sources: tuple[Source, ...]


class Neurons(Fold):
    """Give a block's gated feed-forward part those neurons, of its own and of removed blocks, that serve best.

    A neuron of down(act(gate(x)) * up(x)) is a row of gate, the same row of up, and the column of down. The residual
    stream changes slowly across removed blocks, so a neuron of theirs computes on the stream before the gap about what
    it did in its place. With Z the values of all candidates and R what the stream lacks plus what the part makes, D
    minimises |ZD - R|^2 plus a ridge penalty on how far D is from what the block makes of its neurons now. In rounds
    those candidates are left out without which this minimum rises least, as in Optimal Brain Surgeon: by
    |D_j|^2 / ((Z'Z + penalty)^-1)_jj for neuron j. As many stay as the part has; their rows become its gate and up,
    and D, fitted again on them alone, its down. So the block keeps its shape. The same sums also give the refit of the
    block's own neurons; the loss on held-out windows chooses.

    Candidates are all neurons of the block and, of the removed blocks', those that write most: the root mean square of
    a value times the length of its column of down.

    References:
        Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1992.
    """

    names = ("neurons", "refit")

    def __init__(self, last: LastMap, network: nn.Module, pool: Pool) -> None:
        super().__init__(last, network)
        self.sums = self._ridge = Ridge()
        self.path = pool.path
        self.own = copy.deepcopy(find_part(network, pool.path))
        self.sources = (Source(self.own, torch.ones_like(pool.sources[0].scale)), *pool.sources)
        self.candidates: list[Tensor] = []  # of each source, the indices of its neurons
        self._kept: dict[str, Tensor] = {}  # by fold, the indices of the features that stay

    def watched(self, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        """While open, each call of the copy's feed-forward part gives its input, and what it makes."""
        return watched(self.network, self.path, note)

    @torch.no_grad()
    def choose(self, given: Sequence[Tensor]) -> None:
        """Choose the candidates by some inputs of the part, (tokens, channels) each."""
        writes: list[Tensor] = []
        for source in self.sources:
            values = torch.stack([_values(source, each).square().mean(0) for each in given]).mean(0).sqrt()
            writes.append(values * _down(source.part).weight.float().norm(dim=0).to(values.device))
        width = len(writes[0])
        writes[0].fill_(torch.inf)
        count = min(sum(map(len, writes)), (1 + FOREIGN) * width, max(MOST, width))
        self.candidates = _by_part(torch.cat(writes).topk(count).indices, [len(each) for each in writes])

    def values(self, given: Tensor) -> Tensor:
        """The candidates' values for inputs of the part: (tokens, candidates)."""
        pairs = zip(self.sources, self.candidates, strict=True)
        return torch.cat([_values(source, given)[:, some] for source, some in pairs], 1)

    def features(self, given: Tensor, made: Tensor) -> Tensor:
        """The candidates' values, a column of ones for a bias, and next to them what the part makes of its own now."""
        ones = [] if self.bias is None else [torch.ones_like(given[:, :1])]
        return torch.cat([self.values(given), *ones, made], 1)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add tokens: what the candidates are to make is what the part makes and what the stream lacks."""
        count = features.shape[1] - targets.shape[1]
        self.sums.add(features[:, :count], features[:, count:] + targets)

    def put(self, penalty: float, name: str) -> None:
        """Give the copy the neurons that stay, all its own for "refit", and the fit of the map after them."""
        if name not in self._kept:
            self._kept[name] = self._own() if name == "refit" else self._best()
        sizes = [len(some) for some in self.candidates]
        stay = _by_part(self._kept[name], [*sizes, self._ridge.size - sum(sizes)])[: len(sizes)]
        kept = [some[each.to(some.device)] for some, each in zip(self.candidates, stay, strict=True)]
        put_neurons(find_part(self.network, self.path), self.sources, kept)
        solution = self._ridge.solve(penalty, self._kept[name], self._prior())
        self.last.set_weights(self.network, *self.changed(solution.to(self.weight)))

    def changed(self, solution: Tensor) -> tuple[Tensor, Tensor | None]:
        """The solution is the weight, (outputs, inputs), and bias."""
        return (solution.T, None) if self.bias is None else (solution[:-1].T, solution[-1])

    def _prior(self) -> Tensor:
        """What the part makes of each feature now: nothing of the neurons that are not its own."""
        last = [] if self.bias is None else [self.bias[None]]
        foreign = self._ridge.size - self.weight.shape[1] - len(last)
        return torch.cat([self.weight.T, self.weight.new_zeros(foreign, len(self.weight)), *last])

    def _own(self) -> Tensor:
        """Indices of the part's own neurons, which are the first candidates, and of the ones."""
        indices = torch.arange(self._ridge.size)
        return torch.cat([indices[: self.weight.shape[1]], indices[sum(map(len, self.candidates)) :]])

    def _best(self) -> Tensor:
        """Indices of the neurons that stay, as many as the part has, and of the ones."""
        width, many = self.weight.shape[1], sum(map(len, self.candidates))
        kept = torch.arange(self._ridge.size)
        for left in range(ROUNDS - 1, -1, -1):
            count = round(width * (many / width) ** (left / ROUNDS))  # the same share goes in each
            worth = self._ridge.worth(RANKING_PENALTY, kept, self._prior())
            kept = kept.to(worth.device)
            neurons, ones = kept[kept < many], kept[kept >= many]
            kept = torch.cat([neurons[worth[: len(neurons)].topk(count).indices.sort().values], ones])
        return kept


@torch.no_grad()
def put_neurons(part: nn.Module, sources: Sequence[Source], neurons: Sequence[Tensor]) -> None:
    """Give a gated part rows of gate and up of sources: of each the neurons of these indices."""
    for name in GATED[:2]:
        own: Any = getattr(part, name)
        linears: list[Any] = [getattr(source.part, name) for source in sources]
        scales = [source.scale.to(linear.weight.device) for source, linear in zip(sources, linears, strict=True)]
        some = [indices.to(scale.device) for indices, scale in zip(neurons, scales, strict=True)]
        rows = [linear.weight[each].float() * scale for linear, scale, each in zip(linears, scales, some, strict=True)]
        own.weight.copy_(torch.cat([each.to(own.weight.device) for each in rows]))
        if own.bias is not None:
            biases = [linear.bias[each] for linear, each in zip(linears, some, strict=True)]
            own.bias.copy_(torch.cat([each.to(own.bias.device) for each in biases]))


@torch.no_grad()
def find_pool(blocks: Blocks, index: int, last: LastMap, removed: Sequence[int], input_ids: Tensor) -> Pool | None:
    """The parts of removed blocks whose neurons block `index` can take over; None for none, or where there is no room.

    Found by trying in float32 on token ids of shape (1, tokens): with all neurons of another block, in reverse order,
    and its last map, the part must compute what the other block's does on the same stream.
    """
    path = last.path.removesuffix(f".{GATED[2]}")
    if path == last.path or path not in gated_parts(blocks.modules[index]):
        return None
    if _down(find_part(blocks.modules[index], path)).weight.shape[-1] >= MOST:
        return None  # there would be no candidates but its own
    block = copy.deepcopy(blocks.modules[index]).float()
    calls: list[tuple[Tensor, Tensor]] = []
    call = blocks.called_with(index, input_ids).float()
    with watched(block, path, lambda *each: calls.append(each)):
        norm = find_norm_before(block, path, lambda: call.run(block))
    if len(calls) != 1:
        return None
    given = calls[0][0]
    sources = (_source(block, path, norm, copy.deepcopy(blocks.modules[other]).float(), given) for other in removed)
    usable = tuple(
        Source(find_part(blocks.modules[other], path), scale)
        for other, scale in zip(removed, sources, strict=True)
        if scale is not None
    )
    return Pool(path, usable) if usable else None


def _source(
    block: nn.Module, path: str, norm: tuple[LastMap, Tensor] | None, other: nn.Module, given: Tensor
) -> Tensor | None:
    """The scale of another block's part, in float32; None if the neurons of it do not work in `block`."""
    if path not in gated_parts(other):
        return None
    scale, seen = torch.ones_like(given.flatten(0, -2)[0]), given
    if norm is not None:
        (own, own_bias), (factors, bias) = (norm[0].weights(each) for each in (block, other))
        if own_bias is not None or bias is not None:
            return None
        scale = torch.where(own.abs() > TOLERANCE * own.abs().max(), factors / own, 0.0)
        seen = find_part(other, norm[0].path)(norm[1])
    part, theirs = copy.deepcopy(find_part(block, path)), find_part(other, path)
    if any(_shapes(getattr(part, name)) != _shapes(getattr(theirs, name)) for name in GATED):
        return None
    backwards = torch.arange(_down(part).weight.shape[1] - 1, -1, -1, device=given.device)
    put_neurons(part, [Source(theirs, scale)], [backwards])
    _down(part).load_state_dict(_down(theirs).state_dict())
    _down(part).weight.data = _down(part).weight.data[:, backwards]
    found, wanted = part(given), theirs(seen)
    same = isinstance(found, Tensor) and (found - wanted).norm() <= TOLERANCE * wanted.norm()
    return scale if same else None


def _values(source: Source, given: Tensor) -> Tensor:
    """What goes into the last map of a part, for inputs of the part with the scale 1: (tokens, neurons), in float32."""
    found: list[Tensor] = []
    with watched(source.part, GATED[2], lambda values, _: found.append(values)):
        source.part((given.float() * source.scale.to(given.device)).to(_down(source.part).weight.dtype))
    return found[-1].to(given.device).float()


def _by_part(indices: Tensor, sizes: list[int]) -> list[Tensor]:
    """Indices among all neurons of several parts as ascending indices in each part."""
    chosen = torch.zeros(sum(sizes), dtype=torch.bool, device=indices.device).index_fill_(0, indices, True)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [chosen[start : start + size].nonzero()[:, 0] for start, size in zip(starts, sizes, strict=True)]


def _shapes(linear: Any) -> list[torch.Size]:
    return [parameter.shape for parameter in linear.parameters()]


def _down(part: nn.Module) -> Any:
    return getattr(part, GATED[2])
