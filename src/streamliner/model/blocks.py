"""A model's stack at work: bypass blocks, resume at a depth, watch the residual stream.

This relies on three facts of an architecture: the list of block modules, that a block maps the residual stream to the
residual stream, and how a block passes it on. Embeddings, masks, rotary tables, the final norm and the head stay in the
model's own `forward`. The facts are found by structure and checked on a forward of four tokens, so a model that works
otherwise is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import StreamlinerError, UnsupportedModelError
from streamliner.model.devices import offloaded_bytes, present
from streamliner.model.handoff import Call, stream_out
from streamliner.model.stack import check_indices, find_stack, text_inputs
from streamliner.model.trace import check_plain, find_handoffs, trace

BlockForward = Callable[[Call], Any]
"""Takes what a block is called with, and returns what the block returns."""


class Blocks:
    """The stack of a model.

    Attributes:
        model: the `PreTrainedModel` around the stack.
        path: where the stack is, such as "model.layers".
        modules: the block modules in order.
        config: the config object that describes the stack: the model's, or the text config nested in it.
        handoffs: for each block how it passes the stream on.
        unread: blocks that do not run on text alone (those that read an image, in Mllama).
        stream_bytes: bytes of the stream for one token.
        stream_device: where the last block returns the stream.
        bytes_read: bytes of offloaded weights that `present` loaded so far.
        plain_stream: whether the stream is (windows, tokens, hidden), not several streams in one tensor.
        takes_positions: whether the model's forward can compute the logits of some positions only.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack = find_stack(model)
        self.path, self.modules, self.config = self.stack.path, self.stack.modules, self.stack.config
        self.takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.bytes_read = 0
        runs = trace(self.modules, self._run_on_four_tokens)
        check_plain(runs, self.stack, type(model).__name__)
        self.handoffs = find_handoffs(runs, len(self))
        ran = {run.index for run in runs}
        self.unread = tuple(index for index in range(len(self)) if index not in ran)
        last = runs[-1].stream
        self.plain_stream = last.ndim == 3
        self.stream_bytes, self.stream_device = last.nbytes // (last.shape[0] * last.shape[1]), last.device

    def _run_on_four_tokens(self) -> None:
        try:
            self.forward(torch.arange(4)[None] % self.config.vocab_size)
        except StreamlinerError:
            raise
        except Exception as error:  # a model that needs more than text may raise anything
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not run on text alone: {type(error).__name__}: {error}"
            ) from error

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def device(self) -> torch.device:
        """The device that token ids must be on."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator, no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are not quantised."""
        plain = (p.dtype for p in self.modules.parameters() if p.is_floating_point() and p.element_size() > 1)
        return next(plain, self.model.dtype)  # type: ignore[arg-type, return-value]

    @property
    def cache_name(self) -> str:
        """Name of the cache among the arguments of the model's forward and in its output."""
        # Releases of transformers before 5.24 have only the longer name.
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    @property
    def one_position(self) -> dict[str, Any]:
        """Arguments of `forward` for the logits of one position only, where only the stream or the cache is wanted."""
        return self.keep_positions([0])

    def keep_positions(self, positions: Sequence[int] | Tensor) -> dict[str, Any]:
        """Arguments of `forward` for the logits of these positions only; none if the model computes all."""
        # A tensor: with a slice torch would copy the head's weights in bfloat16.
        return {"logits_to_keep": torch.as_tensor(positions)} if self.takes_positions else {}

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's own forward without a cache.

        Args:
            input_ids: (windows, tokens).
            inputs: further arguments of the model's forward.
        """
        return self.model(**text_inputs(self.model, input_ids.to(self.device)), use_cache=False, **inputs)

    @contextmanager
    def bypass(self, removed: Iterable[int]) -> Iterator[None]:
        """While open, the blocks in `removed` return their input. This *defines* removal."""
        with self.substituted({index: self.pass_on(index) for index in check_indices(removed, len(self))}):
            yield

    def resume(self, depth: int, state: Tensor, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's own forward from `depth` on: blocks below are skipped, the residual stream there is `state`.

        Args:
            depth: 1 to N; at N only the final norm and the head remain.
            state: residual stream at `depth`, (windows, tokens, hidden...).
            input_ids: the tokens that `state` was computed from, for masks and positions.
            inputs: further arguments of the model's forward.
        """
        if not 1 <= depth <= len(self):
            raise ValueError(f"depth must be 1 to {len(self)}, not {depth}")
        forwards = {index: self.pass_on(index) for index in range(depth - 1)}
        forwards[depth - 1] = lambda call: self.hand_on(depth - 1, state, call)
        with self.substituted(forwards):
            return self.forward(input_ids, **inputs)

    def logits(self, stream: Tensor, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The model's own final norm and head on some positions.

        Args:
            stream: at depth N, (windows, tokens, hidden...).
            input_ids: the tokens that it was computed from.
            positions: indices of tokens.

        Returns:
            (windows, positions, vocabulary).
        """
        logits: Tensor = self.resume(len(self), stream, input_ids, **self.keep_positions(positions)).logits
        return logits if self.takes_positions else logits[:, positions]

    def streams(self, input_ids: Tensor, depths: Iterable[int]) -> dict[int, Tensor]:
        """Residual streams at `depths`, each 1 to N, from one forward, under whatever substitutions are open.

        Blocks after the last depth do not run, and the head computes as little as possible.
        """
        wanted = set(depths)
        last = max(wanted)
        found: dict[int, Tensor] = {}
        original = self.modules[last - 1].forward

        def final(call: Call) -> Any:
            found[last] = stream_out(call.run(original))
            # The rest of the model continues with one window: its logits are not used.
            one = found[last][:1] if self.plain_stream else found[last]
            return self.hand_on(last - 1, one, call)

        def note(depth: int, stream: Tensor) -> None:
            if depth in wanted and depth < last:
                found[depth] = stream

        forwards = {index: self.pass_on(index) for index in range(last, len(self))}
        with self.substituted(forwards | {last - 1: final}), self.watch(note):
            self.forward(input_ids, **self.one_position)
        return found

    @contextmanager
    def watch(self, on_stream: Callable[[int, Tensor], None]) -> Iterator[None]:
        """While open, every forward calls `on_stream(depth, stream)` for depth 0 to N, in order."""

        def before(depth: int) -> Callable[..., None]:
            return lambda module, args, kwargs: on_stream(depth, Call(args, kwargs).stream)

        with ExitStack() as hooks:
            for depth, module in enumerate(self.modules):
                hooks.callback(module.register_forward_pre_hook(before(depth), with_kwargs=True).remove)
            after = self.modules[-1].register_forward_hook(
                lambda module, args, output: on_stream(len(self), stream_out(output))
            )
            hooks.callback(after.remove)
            yield

    def called_with(self, index: int, input_ids: Tensor) -> Call:
        """What the model calls a block with in a forward of `input_ids`, (windows, tokens)."""
        return trace([self.modules[index]], lambda: self.forward(input_ids))[0].call

    @contextmanager
    def substituted(self, forwards: Mapping[int, BlockForward]) -> Iterator[None]:
        """While open, these blocks run other forwards in place of their own."""
        # An instance attribute hides the class's forward. There may be one already, of an outer context or a hook of
        # accelerate; it is put back.
        before = {index: vars(self.modules[index]).get("forward") for index in forwards}
        for index, forward in forwards.items():
            self.modules[index].forward = _taking_arguments(forward)
        try:
            yield
        finally:
            for index, hidden in before.items():
                if hidden is None:
                    del self.modules[index].forward
                else:
                    self.modules[index].forward = hidden

    def pass_on(self, index: int) -> BlockForward:
        """The forward of a bypassed block."""
        return lambda call: self.hand_on(index, call.stream, call)

    def hand_on(self, index: int, stream: Tensor, call: Call) -> Any:
        """What block `index` returns if `stream` is its output. State besides the stream passes unchanged."""
        return self.handoffs[index].bypassed(stream, call)

    @property
    def hands_on_state(self) -> bool:
        """Whether state goes from block to block besides the stream; a network in a block's place would not have it."""
        return any(handoff.has_state for handoff in self.handoffs)

    @property
    def forkable(self) -> bool:
        """Whether blocks exchange only the stream, so that rows of a batch may skip blocks."""
        return not self.unread and not self.hands_on_state

    @property
    def offloaded(self) -> bool:
        """Whether weights of blocks are loaded for each call and dropped after it (hooks of accelerate)."""
        return any(map(self.offloaded_bytes, range(len(self))))

    def offloaded_bytes(self, index: int) -> int:
        """Bytes of a block's weights that are loaded for each call."""
        return offloaded_bytes(self.modules[index])

    @contextmanager
    def present(self, index: int) -> Iterator[None]:
        """While open, a block's weights are where it runs: offloaded ones are loaded once for all its calls."""
        self.bytes_read += self.offloaded_bytes(index)
        with present(self.modules[index]):
            yield


def _taking_arguments(forward: BlockForward) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(Call(args, kwargs))
