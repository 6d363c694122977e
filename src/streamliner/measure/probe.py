"""The probe: everything that a search method sees of a model. Methods see measurements, never the model."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from streamliner.errors import OutputError
from streamliner.measure.counters import Counters, Progress
from streamliner.measure.deadline import Deadline
from streamliner.measure.forked import TOLERANCE, ForkedPath
from streamliner.measure.loss import Loss
from streamliner.measure.plain import PlainPath
from streamliner.measure.similarity import Similarity, SimilaritySum
from streamliner.model.blocks import Blocks
from streamliner.model.devices import MEMORY_BUDGET, can_be_in_float32, in_float32
from streamliner.model.fork import Removed
from streamliner.model.stack import check_indices
from streamliner.runs.journal import Journal
from streamliner.runs.ranks import Ranks
from streamliner.text.calibration import CalibrationSet


class Probe:
    """Measures one model on one calibration set, and remembers every loss by set of blocks and window.

    Args:
        blocks: of the model.
        calibration: the windows.
        batch_size: windows in one forward of the plain path.
        journal: where losses are kept between runs.
        on_progress: called with (losses done, losses expected) as they are measured.
        refusal: why the architecture does not let a set of blocks be removed, "" where it does (`Structure.refusal`).
        fork: measure all removals that are asked for together in one forward per window; False for a forward each.
        memory_budget: bytes next to the model for streams, a block at work and logits.
        ranks: the processes that share the windows; all must ask for the same measurements.
        say: called with messages for the user; methods may call it too.
        objective: what a loss is: "loss", the cross-entropy of the next token, or "kl", the divergence of the model's
            distribution of the next token from the dense model's. Both in nats, a mean over the same predictions.
        counters: where the cost is added; by default new ones.
        deadline: when methods must end; by default never.

    Attributes:
        num_blocks: number of blocks of the dense model.
        num_windows: number of windows of the calibration set.
        windows_at_once: windows in one forward of the forked path.
        counters: what the measurements cost this process.
        progress: how far the search is.
        deadline: when `deadline.is_over()`, a method ends with the best it knows.
    """

    def __init__(
        self,
        blocks: Blocks,
        calibration: CalibrationSet,
        *,
        batch_size: int = 1,
        journal: Journal | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        refusal: Callable[[Removed], str] = lambda removed: "",
        fork: bool = True,
        memory_budget: int = MEMORY_BUDGET,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda message: None,
        objective: str = "loss",
        counters: Counters | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.num_blocks = len(blocks)
        self.num_windows = len(calibration.windows)
        self.counters = counters or Counters()
        self.progress = Progress(on_progress)
        self._calibration, self._memory_budget = calibration, memory_budget
        self._blocks, self._windows, self._batch_size = blocks, calibration.windows, batch_size
        self._journal, self._ranks = journal, ranks or Ranks()
        self.deadline = deadline or Deadline()
        self._refusal, self.say, self.objective = refusal, say, objective
        self._plain = PlainPath(blocks, self.counters)
        self._forked = ForkedPath(blocks, self._windows, self._plain, self.counters, memory_budget, objective)
        self.windows_at_once = self._forked.windows_at_once
        self._losses = {key: dict(losses) for key, losses in journal.losses.items()} if journal else {}
        self._text_losses: dict[Removed, dict[int, float]] = {}  # where the objective is another
        self.measured_similarity: Similarity | None = None  # what `similarity` returned, if it was called
        self._fork_is_right: bool | None = None if fork else False  # None: not tested yet
        if fork and journal and journal.fork and journal.fork[1] == self.windows_at_once:
            self._fork_is_right = not journal.fork[0]

    @property
    def windows_in_parallel(self) -> int:
        """Windows that take about as long as one: of each process one, or without forks a batch."""
        return self._ranks.size * (self._batch_size if self._fork_is_right is False else 1)

    def of_model(self, blocks: Blocks, journal: Journal | None, refusal: Callable[[Removed], str]) -> "Probe":
        """A probe of another model on the same windows. It adds to these counters, and takes over the memory."""
        self._forked.forget()
        found = Probe(
            blocks,
            self._calibration,
            batch_size=self._batch_size,
            journal=journal,
            refusal=refusal,
            memory_budget=self._memory_budget,
            ranks=self._ranks,
            say=self.say,
            counters=self.counters,
        )
        found.progress, found.deadline = self.progress, self.deadline
        return found

    def refusal(self, removed: Iterable[int]) -> str:
        """Why these blocks cannot be removed together; "" if they can. Methods ask this before they remove blocks."""
        key = check_indices(removed, self.num_blocks)
        unread = [str(index) for index in key if index in self._blocks.unread]
        if unread:
            return f"Block {', '.join(unread)} does not run on text alone, so text cannot measure what it does."
        return self._refusal(key)

    def loss(self, removed: Iterable[int] = ()) -> Loss:
        """Loss of the model without `removed`."""
        key = check_indices(removed, self.num_blocks)
        return self.losses([key])[key]

    def text_loss(self, removed: Iterable[int] = ()) -> Loss:
        """Cross-entropy of the next token without `removed`, with any objective. Not journaled with another one."""
        key = check_indices(removed, self.num_blocks)
        return self._found([key], range(self.num_windows), "loss")[key]

    def check_a_known_loss(self) -> None:
        """Measure a loss from the journal again; an OutputError if it is another one now."""
        key, known = next(((key, losses) for key, losses in self._losses.items() if losses), ((), {}))
        for number, before in list(known.items())[:1]:
            now = self._plain.losses(self._windows[[number]], key)[0]
            if not abs(now - before) <= 10 * TOLERANCE.get(self._blocks.dtype, 1e-5) * abs(before):
                raise OutputError(
                    f"The run folder is of an earlier release, and its losses are not those of this model here: "
                    f"{before:.6g} there and {now:.6g} now. The config, the device or a release may differ.",
                    "Choose another folder, or add --overwrite to start it again from the beginning.",
                )

    def losses_without_each(self, removed: Iterable[int], candidates: Iterable[int]) -> dict[int, Loss]:
        """For each candidate, the loss of the model without `removed` and without that block."""
        removed = tuple(removed)
        keys = {block: tuple(sorted((*removed, block))) for block in sorted(candidates)}
        losses = self.losses(keys.values())
        return {block: losses[key] for block, key in keys.items()}

    def losses(self, removals: Iterable[Iterable[int]], windows: range | None = None) -> dict[Removed, Loss]:
        """Losses of the model without each set of blocks, on some windows or all; the keys are sorted tuples.

        Unknown ones are measured together on the forked path where that matches plain forwards.
        """
        keys = list(dict.fromkeys(check_indices(removed, self.num_blocks) for removed in removals))
        return self._found(keys, range(self.num_windows) if windows is None else windows, self.objective)

    def _found(self, keys: list[Removed], numbers: range, objective: str) -> dict[Removed, Loss]:
        """Losses of `keys` on some windows; unknown ones are measured."""
        known = self._known(objective)
        together: dict[tuple[int, ...], list[Removed]] = {}  # windows to measure -> removals
        for key in keys:
            unknown = tuple(number for number in numbers if number not in known.get(key, {}))
            together.setdefault(unknown, []).append(key)
        for unknown, some in together.items():
            self.progress.advance(len(some) * (len(numbers) - len(unknown)))
            if unknown:
                self._measure(some, unknown, objective)
        return {key: Loss(tuple(known[key][number] for number in numbers)) for key in keys}

    def _known(self, objective: str) -> dict[Removed, dict[int, float]]:
        return self._losses if objective == self.objective else self._text_losses

    def _dense(self, windows: list[int], objective: str) -> Tensor | None:
        """What plain losses on these windows are compared with, if not with the text: the dense model's logits."""
        return self._plain.logits(self._windows[windows]) if objective == "kl" else None

    @cached_property
    def resolution(self) -> float:
        """The difference of two mean losses, in nats, that may be rounding in 16 bits; 0 where that is not known.

        Twice the standard error of the difference between two removals: how far it is from that in float32 on a
        window, from three removals on up to four windows, divided by the root of the number of windows.
        """
        count, depth = min(4, self.num_windows), self.num_blocks
        keys = [(block,) for block in sorted({depth // 4, depth // 2, 3 * depth // 4})]
        exact = self._in_float32(keys, count)
        if exact is None or len(keys) < 2:
            return 0.0
        error = self._plain_losses(keys, count) - exact
        pairs = torch.stack([a - b for a, b in itertools.combinations(error, 2)])
        return 2 * pairs.square().mean().sqrt().item() / math.sqrt(self.num_windows)

    def losses_in_float32(self, removals: Iterable[Iterable[int]]) -> dict[Removed, Loss]:
        """Losses of a model of 16 bits on all windows, its weights in float32 meanwhile; one forward for each.

        Empty where that is no better or not possible: a model of float32, quantised or offloaded, or too little memory.
        """
        keys = [check_indices(removed, self.num_blocks) for removed in removals]
        found = self._in_float32(keys, self.num_windows)
        return {} if found is None else {k: Loss(tuple(row)) for k, row in zip(keys, found.tolist(), strict=True)}

    def _in_float32(self, keys: Sequence[Removed], count: int) -> Tensor | None:
        """`_plain_losses` in float32; None where that is no better or not possible."""
        possible = can_be_in_float32(self._blocks.model) and not self._blocks.offloaded
        if self._ranks.total(torch.tensor(float(possible))).item() < self._ranks.size:
            return None
        with in_float32(self._blocks.model):
            return self._plain_losses(keys, count)

    @torch.inference_mode()
    def _plain_losses(self, keys: Sequence[Removed], count: int) -> Tensor:
        """Losses on the first `count` windows, (removals, windows), of a forward each."""
        found = torch.zeros(len(keys), count, dtype=torch.float64)
        for number in self._ranks.share(count):
            dense = self._dense([number], self.objective)
            for row, key in enumerate(keys):
                found[row, number] = self._plain.losses(self._windows[[number]], key, dense)[0]
        return self._ranks.total(found)

    def similarity(self) -> Similarity:
        """Similarity of the dense model's residual streams at all pairs of depths, from one pass."""
        if self.measured_similarity is None:
            self.progress.remaining += self.num_windows
            total = SimilaritySum(self.num_blocks + 1)
            for numbers in self._batches():
                total.add(self._plain.streams(self._windows[numbers]))
                self.progress.advance(len(numbers))
            self.measured_similarity = total.result(self._ranks.total)
            self.progress.advance(self.num_windows - sum(map(len, self._batches())))
        return self.measured_similarity

    @torch.inference_mode()
    def _measure(self, keys: list[Removed], windows: Sequence[int], objective: str) -> None:
        """Measure all `keys` on all `windows`, none of them known: this process its share of the windows."""
        start = time.perf_counter()
        mine = [windows[place] for place in self._ranks.share(len(windows))]
        found = torch.zeros(len(keys), len(windows), dtype=torch.float64)
        for some, group, losses in self._measured(keys, mine, objective):
            rows, columns = [keys.index(key) for key in some], [windows.index(number) for number in group]
            found[torch.tensor(rows)[:, None], columns] = torch.tensor(losses, dtype=torch.float64)
            if self._journal and objective == self.objective:
                self._journal.remember(group, dict(zip(some, losses, strict=True)))
            count = len(some) * len(group)
            self.counters.window_losses += count
            self.counters.tokens += count * self._windows.shape[1]
            self.progress.advance(count)
        for key, row in zip(keys, self._ranks.total(found).tolist(), strict=True):
            self._known(objective).setdefault(key, {}).update(zip(windows, row, strict=True))
        self.progress.advance(len(keys) * (len(windows) - len(mine)))
        self.counters.seconds += time.perf_counter() - start

    def _measured(
        self, keys: list[Removed], windows: list[int], objective: str
    ) -> Iterator[tuple[list[Removed], list[int], list[list[float]]]]:
        """Some removals, some windows, and the losses of these, (removals, windows), until all are measured."""
        if (len(keys) > 1 or self._blocks.offloaded) and self._may_fork(keys):
            for group in _batches(windows, self.windows_at_once):
                yield keys, group, self._forked.losses(group, keys, objective)
            return
        for group in _batches(windows, self._batch_size):
            dense = self._dense(group, objective)
            for key in keys:
                yield [key], group, [self._plain.losses(self._windows[group], key, dense)]

    def _may_fork(self, keys: list[Removed]) -> bool:
        """Whether the forked path matches the plain one in all processes; tested the first time."""
        if self._fork_is_right is None:
            why = self._forked.why_wrong(keys)
            self._fork_is_right = self._ranks.total(torch.tensor(float(not why))).item() == self._ranks.size
            if not self._fork_is_right:
                why = why or "in another process"
                slower = "so each candidate takes its own forward, which is slower"
                self.say(f"Batched evaluation does not match this model, {slower} ({why}).")
            if self._journal:
                self._journal.remember_fork(why, self.windows_at_once)
        return self._fork_is_right

    def _batches(self) -> list[list[int]]:
        """This process's windows, in batches."""
        return _batches(list(self._ranks.share(self.num_windows)), self._batch_size)


def _batches(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
