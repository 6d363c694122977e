"""A model's stack at work: bypass blocks, resume at a depth, watch the residual stream.

Three facts of an architecture are enough: the list of block modules, that a block maps the residual stream to the
residual stream, and how it passes it on. They are found by structure and checked on a forward of four tokens; a model
that works otherwise is refused. All else, from embeddings and masks to the head, stays in the model's own `forward`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamliner.errors import MISFITS, StreamlinerError, UnsupportedModelError, is_of_device, is_out_of_memory
from streamliner.model.compat import mend_llama4
from streamliner.model.devices import is_spread, keep_present, offloaded_bytes, present
from streamliner.model.handoff import Call, find_handoffs, stream_out, trace
from streamliner.model.stack import check_indices, find_stack, text_inputs

ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""How far logits of the same positions may be apart, relative to the largest, in two computations; 1e-5 in float32."""
BlockForward = Callable[[Call], Any]
"""Takes what a block is called with, and returns what the block returns."""


class Blocks:
    """The stack of a model, a `PreTrainedModel`.

    Attributes:
        path: where the stack is, such as "model.layers".
        modules: the block modules in order.
        config: the config object that describes the stack: the model's, or the text config nested in it.
        handoffs: for each block how it passes the stream on.
        hands_on_state: whether state goes from block to block besides the stream.
        unread: blocks that do not run on text alone (those that read an image, in Mllama).
        forkable: whether blocks exchange only the stream, so that rows of a batch may skip blocks.
        plain_stream: whether the stream is (windows, tokens, hidden), not several streams in one tensor.
        stream_bytes: bytes of the stream for one token.
        stream_device: where the last block returns the stream.
        offloaded_bytes: for each block, bytes of weights that hooks of accelerate load for each call.
        offloaded: whether there are such weights.
        cache_name: name of the cache among the arguments of the model's forward and in its output.
    """

    def __init__(self, model: nn.Module) -> None:
        mend_llama4()
        self.model = model
        self.stack = find_stack(model)
        self.path, self.modules, self.config = self.stack.path, self.stack.modules, self.stack.config
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._picks = self._keeps_logits and not is_spread(model)
        # Releases of transformers before 5.24 have only the longer name.
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        self.offloaded_bytes = [offloaded_bytes(module) for module in self.modules]
        self.offloaded = any(self.offloaded_bytes)
        runs = trace(self.modules, self._run_on_four_tokens)
        self.handoffs = find_handoffs(runs, self.stack, type(model).__name__)
        self.hands_on_state = any(key is not None for handoff in self.handoffs for key in handoff.arrives_at)
        self.unread = sorted(set(range(len(self))) - {run.index for run in runs})
        self.forkable = not self.unread and not self.hands_on_state
        stream = stream_out(runs[-1].output)
        self._tried = self._four_tokens(), stream
        self.plain_stream, self.stream_device = stream.ndim == 3, stream.device
        self.stream_bytes = stream.nbytes // (stream.shape[0] * stream.shape[1])

    def _run_on_four_tokens(self) -> None:
        try:
            self.forward(self._four_tokens())
        except StreamlinerError:
            raise
        except Exception as error:  # a model that needs more than text may raise anything
            if is_out_of_memory(error) or is_of_device(error):
                raise
            name, reason = type(self.model).__name__, f"{type(error).__name__}: {error}"
            raise UnsupportedModelError(f"{name} does not run on text alone: {reason}") from error

    def _four_tokens(self) -> Tensor:
        return torch.arange(4)[None] % int(self.config.vocab_size)

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

    def last_logits(self, tokens: int) -> dict[str, Any]:
        """Arguments of a forward of so many tokens for the logits of the last one only; none if it computes all."""
        if not self._keeps_logits:
            return {}
        # On a CPU a tensor: with a number, a slice, torch would copy the head's weights in bfloat16. On other devices a
        # number: a tensor would have to go there, and hooks of accelerate would send it to the first one.
        return {"logits_to_keep": torch.tensor([tokens - 1]) if self.device.type == "cpu" else 1}

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's own forward of `input_ids`, (windows, tokens), without a cache; `inputs` go to it too."""
        return self.model(**text_inputs(self.model, input_ids.to(self.device)), use_cache=False, **inputs)

    def bypass(self, removed: Iterable[int]) -> AbstractContextManager[None]:
        """While open, the blocks in `removed` return their input. This *defines* removal."""
        return self.substituted({index: self.pass_on(index) for index in check_indices(removed, len(self))})

    def resume(self, depth: int, state: Tensor, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's own forward from `depth` on: blocks below are skipped, the residual stream there is `state`.

        Args:
            depth: 1 to N; at N only the final norm and the head remain.
            state: (windows, tokens, hidden...).
            input_ids: the tokens that `state` was computed from, for masks and positions.
            inputs: as for `forward`.
        """
        with self.resumed(depth, state):
            return self.forward(input_ids, **inputs)

    def resumed(self, depth: int, state: Tensor) -> AbstractContextManager[None]:
        """While open, forwards skip the blocks below `depth`, 1 to N, and the residual stream there is `state`."""
        if not 1 <= depth <= len(self):
            raise ValueError(f"depth must be 1 to {len(self)}, not {depth}")
        forwards = {index: self.pass_on(index) for index in range(depth - 1)}
        forwards[depth - 1] = lambda call: self.hand_on(depth - 1, state, call)
        return self.substituted(forwards)

    def logits(self, stream: Tensor, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The model's own final norm and head at some positions, (windows, positions, vocabulary).

        `stream` is at depth N, (windows, tokens, hidden...), and was computed from `input_ids`. `positions` are best
        given on its device.
        """
        if self._alone:
            return self._logits_of(stream[:, positions], input_ids[:, : len(positions)])
        if self._picks:
            return self._logits_of(stream, input_ids, logits_to_keep=positions)
        return self._logits_of(stream, input_ids)[:, positions]

    def _logits_of(self, stream: Tensor, input_ids: Tensor, **inputs: Any) -> Tensor:
        return self.resume(len(self), stream, input_ids, **inputs).logits  # type: ignore[no-any-return]

    @property
    def by_position(self) -> bool:
        """Whether the logits of some positions can be computed without those of all others."""
        return self._alone or self._picks

    @cached_property
    @torch.no_grad()
    def _alone(self) -> bool:
        """Whether norm and head make the same of some positions, as if there were no others; compared on four tokens.

        This also works where hooks of accelerate would send a tensor of positions to another device than the stream's.
        """
        ids, stream = self._tried
        whole, some = self._logits_of(stream, ids)[:, [2, 0]], None
        try:
            some = self._logits_of(stream[:, [2, 0]], ids[:, :2])
        except MISFITS as error:
            if is_of_device(error):
                raise
        if some is None or some.shape != whole.shape:
            return False
        allowed = ROUNDING.get(whole.dtype, 1e-5) * max(1.0, whole.abs().max().item())
        return bool((some - whole).abs().max().item() <= allowed)

    def streams(self, input_ids: Tensor, depths: Iterable[int]) -> dict[int, Tensor]:
        """Residual streams at `depths`, each 0 to N, from one forward, under whatever substitutions are open.

        Blocks after the last depth do not run, and the head computes as little as possible. A block that does not run
        on text has no stream after it.
        """
        found: dict[int, Tensor] = {}
        wanted = set(depths)
        last = max(wanted)
        originals = {index: self.modules[index].forward for index in {max(0, depth - 1) for depth in wanted}}

        def run(index: int, call: Call) -> Any:
            if index == 0 and 0 in wanted:
                found[0] = call.stream
            output = call.run(originals[index])
            found[index + 1] = stream_out(output)
            # The rest of the model continues with one window: its logits are not used.
            one = found[index + 1][:1] if self.plain_stream else found[index + 1]
            return output if index + 1 < last else self.hand_on(index, one, call)

        forwards = {index: partial(run, index) for index in originals}
        with self.substituted(forwards | {index: self.pass_on(index) for index in range(max(1, last), len(self))}):
            self.forward(input_ids, **self.last_logits(input_ids.shape[1]))
        if self._keeps_logits and self.plain_stream and any(s.shape[1] != input_ids.shape[1] for s in found.values()):
            # Gemma 4 runs only the wanted positions through its last blocks, so that all must be wanted.
            self._keeps_logits = self._picks = False
            return self.streams(input_ids, wanted)
        return {depth: stream for depth, stream in found.items() if depth in wanted}

    def recomputed(self, index: int) -> BlockForward:
        """A forward of block `index`, as it is now, of which autograd keeps the input alone and computes it again.

        So gradients through frozen blocks need the activations, and offloaded weights, of one block at a time
        (arXiv 1604.06174).
        """
        block = self.modules[index]
        original = block.forward

        def run(call: Call) -> Any:
            with present(block):
                return call.run(original)

        return lambda call: checkpoint(run, call, use_reentrant=False, preserve_rng_state=False)

    def bring(self, indices: Iterable[int]) -> None:
        """Load offloaded weights of some blocks for good: these will change."""
        for index in indices:
            keep_present(self.modules[index])
        self.offloaded_bytes = [offloaded_bytes(module) for module in self.modules]

    @contextmanager
    def watch(self, on_stream: Callable[[int, Tensor], None]) -> Iterator[None]:
        """While open, every forward calls `on_stream(depth, stream)` for depth 0 to N, in order."""

        def before(depth: int, module: nn.Module, args: Any, kwargs: Any) -> None:
            on_stream(depth, Call(args, kwargs).stream)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            on_stream(len(self), stream_out(output))

        with ExitStack() as hooks:
            for depth, block in enumerate(self.modules):
                hooks.callback(block.register_forward_pre_hook(partial(before, depth), with_kwargs=True).remove)
            hooks.callback(self.modules[-1].register_forward_hook(after).remove)
            yield

    def called_with(self, index: int, input_ids: Tensor, **inputs: Any) -> Call:
        """What the model calls a block with in a forward of `input_ids`, (windows, tokens)."""
        return trace([self.modules[index]], lambda: self.forward(input_ids, **inputs))[0].call

    @contextmanager
    def substituted(self, forwards: Mapping[int, BlockForward]) -> Iterator[None]:
        """While open, these blocks run other forwards in place of their own."""
        # An instance attribute hides the class's forward. There may be one already, of an outer context or a hook of
        # accelerate; `patch` puts it back.
        with ExitStack() as stack:
            for index, forward in forwards.items():
                stack.enter_context(patch.object(self.modules[index], "forward", partial(_with_arguments, forward)))
            yield

    def pass_on(self, index: int) -> BlockForward:
        """The forward of a bypassed block."""
        return lambda call: self.hand_on(index, call.stream, call)

    def hand_on(self, index: int, stream: Tensor, call: Call) -> Any:
        """What block `index` returns if `stream` is its output. State besides the stream passes unchanged."""
        return self.handoffs[index].bypassed(stream, call)


def _with_arguments(forward: BlockForward, *args: Any, **kwargs: Any) -> Any:
    return forward(Call(args, kwargs))
