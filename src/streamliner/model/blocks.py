"""The stack at work: bypass blocks, resume at a depth, watch the residual stream.

With `stack.py`, which finds it, this is all that looks inside a model; `fork.py` builds on it. It knows three facts of
an architecture: the list of block modules, that a block maps the residual stream to the residual stream, and how a
block hands it on. Embeddings, masks, rotary tables, the final norm and the head stay in the model's own `forward`. The
first two facts are found by structure and then checked on a forward pass of a few tokens, so a model that works
otherwise is refused instead of half handled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import StreamlinerError, UnsupportedModelError
from streamliner.model.devices import offloading
from streamliner.model.handoff import stream_in, stream_out, taken_as
from streamliner.model.stack import check_indices, find_stack, text_inputs

ForwardFunction = Callable[..., Any]


RESCALED = "Set rescale_every to 0 in its config.json: the model is the same but for rounding, and has plain blocks."


class Blocks:
    """The stack of a model.

    Attributes:
        model: the `PreTrainedModel` around the stack.
        path: where the stack is, such as "model.layers".
        modules: the block modules in order.
        config: the config object that describes the stack: the model's, or the text config nested in it.
        unread: blocks that a forward on text alone leaves out (those that read an image, in Mllama).
        stream_bytes, stream_device: bytes of the stream for one token, and where the last block puts it out.
        bytes_read: of weights that `present` loaded, where they are offloaded.
        plain_stream: whether the stream is (windows, tokens, hidden), not several streams in one tensor.
        takes_positions: whether the model's forward can be asked for the logits of some positions only.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack = find_stack(model)
        self.path, self.modules, self.config = self.stack.path, self.stack.modules, self.stack.config
        # What each block returns: None for a bare tensor, else how to make the tuple or list of it and, for each item
        # behind the stream, the argument (position or name) in which the next block takes it, None if no block does.
        self._returned: list[tuple[Callable[[list[Any]], Any], list[int | str | None]] | None] = [None] * len(self)
        self.unread: tuple[int, ...] = ()
        self.bytes_read = self.stream_bytes = 0
        self.plain_stream = True
        self.takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.stream_device = self.device
        self._check_stream()

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator, no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are not quantised."""
        plain = (p.dtype for p in self.modules.parameters() if p.is_floating_point() and p.element_size() > 1)
        return next(plain, self.model.dtype)  # type: ignore[arg-type, return-value]

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's own forward without a cache; `input_ids` is (batch, tokens)."""
        return self.model(**text_inputs(self.model, input_ids.to(self.device)), use_cache=False, **inputs)

    @contextmanager
    def bypass(self, removed: Iterable[int]) -> Iterator[None]:
        """While this context is open, the blocks in `removed` hand their input on. This *defines* removal."""
        replacements = {index: self.pass_on(index) for index in check_indices(removed, len(self))}
        with self.replaced(replacements):
            yield

    def resume(self, depth: int, state: Tensor, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's own forward from `depth` on: blocks below are skipped, the residual stream there is `state`.

        Args:
            depth: 1 to N; at N only the final norm and the head remain.
            state: residual stream at `depth`, (batch, tokens, hidden).
            input_ids: the tokens that `state` was computed from, for masks and positions.
            inputs: further arguments of the model's forward.
        """
        if not 1 <= depth <= len(self):
            raise ValueError(f"depth must be 1 to {len(self)}, not {depth}")
        replacements = {index: self.pass_on(index) for index in range(depth - 1)}
        replacements[depth - 1] = lambda *args, **kwargs: self.hand_on(depth - 1, state, args, kwargs)
        with self.replaced(replacements):
            return self.forward(input_ids, **inputs)

    @property
    def cache_name(self) -> str:
        """What the model's forward calls the cache, as an argument and in what it returns."""
        # Releases of transformers before 5.24 have the longer name alone.
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    @property
    def one_position(self) -> dict[str, Any]:
        """Argument of `forward` with which the head computes hardly any logits, if the model has such a one.

        A position is picked by a tensor: as a slice it would make torch copy the head's weights in bfloat16.
        """
        return {"logits_to_keep": torch.tensor([0])} if self.takes_positions else {}

    def logits(self, stream: Tensor, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The model's own final norm and head on `positions` of the stream at depth N, (windows, tokens, hidden...).

        `input_ids` are the tokens that it was computed from. Returns (windows, positions, words).
        """
        keep = {"logits_to_keep": positions} if self.takes_positions else {}
        logits: Tensor = self.resume(len(self), stream, input_ids, **keep).logits
        return logits if self.takes_positions else logits[:, positions]

    def streams(self, input_ids: Tensor, depths: Iterable[int]) -> dict[int, Tensor]:
        """Residual streams at `depths`, which are 1 to N or more of them, from one forward.

        Blocks behind the last depth do not run, and the head hardly. What other contexts replaced stays so.
        """
        wanted = set(depths)
        last = max(wanted)
        found: dict[int, Tensor] = {}
        before = self.modules[last - 1].forward

        def final(*args: Any, **kwargs: Any) -> Any:
            found[last] = stream_out(before(*args, **kwargs))
            # The rest of the model goes on with one window: nobody asks for its logits.
            one = found[last][:1] if self.plain_stream else found[last]
            return self.hand_on(last - 1, one, args, kwargs)

        def note(depth: int, stream: Tensor) -> None:
            if depth in wanted and depth < last:
                found[depth] = stream

        forwards = {index: self.pass_on(index) for index in range(last, len(self))}
        with self.replaced(forwards | {last - 1: final}), self.watch(note):
            self.forward(input_ids, **self.one_position)
        return found

    @property
    def forkable(self) -> bool:
        """Whether nothing goes from block to block beside the stream, so that rows of a batch may skip blocks."""
        return not self.unread and not self.hands_on_state

    @contextmanager
    def watch(self, on_stream: Callable[[int, Tensor], None]) -> Iterator[None]:
        """While open, every forward calls `on_stream(depth, stream)` for depth 0 to N, in order.

        Depth N is the output of the last block, before the final norm.
        """
        last = len(self) - 1

        def before(depth: int) -> Callable[..., None]:
            return lambda module, args, kwargs: on_stream(depth, stream_in(args, kwargs))

        with ExitStack() as stack:
            for depth, module in enumerate(self.modules):
                handle = module.register_forward_pre_hook(before(depth), with_kwargs=True)
                stack.callback(handle.remove)
            handle = self.modules[last].register_forward_hook(
                lambda module, args, output: on_stream(last + 1, stream_out(output))
            )
            stack.callback(handle.remove)
            yield

    @property
    def offloaded(self) -> bool:
        """Whether weights of blocks are loaded for each call and dropped after it (hooks of accelerate)."""
        return any(offloading(module) for module in self.modules)

    def offloaded_bytes(self, index: int) -> int:
        """Bytes of a block's weights that are loaded for each call."""
        loaded = offloading(self.modules[index])
        return sum(parameter.nbytes for module, _ in loaded for parameter in module.parameters(recurse=False))

    @contextmanager
    def present(self, index: int) -> Iterator[None]:
        """While open, the weights of a block are where it runs: offloaded ones are loaded once for all its calls."""
        loaded = offloading(self.modules[index])
        self.bytes_read += self.offloaded_bytes(index)
        try:
            for module, hook in loaded:
                hook.pre_forward(module)
                hook.offload = False  # the calls inside find the weights there
            yield
        finally:
            for module, hook in loaded:
                if not hook.offload:
                    hook.offload = True
                    hook.post_forward(module, None)

    def pass_on(self, index: int) -> ForwardFunction:
        """The forward of a bypassed block."""
        return lambda *args, **kwargs: self.hand_on(index, stream_in(args, kwargs), args, kwargs)

    def hand_on(self, index: int, stream: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What block `index` returns if `stream` is its output; `args` and `kwargs` are what it was called with."""
        returned = self._returned[index]
        if returned is None:
            return stream
        # State that goes from block to block beside the stream passes a bypassed block unchanged.
        make, further = returned
        return make(
            [stream, *(args[key] if isinstance(key, int) else kwargs.get(key) if key else None for key in further)]
        )

    @property
    def hands_on_state(self) -> bool:
        """Whether something goes from block to block beside the stream that a network in a block's place would lack."""
        return any(item is not None for returned in self._returned if returned for item in returned[1])

    def further_outputs(self, index: int) -> int | None:
        """How many items a block returns behind the stream; None for a bare stream."""
        returned = self._returned[index]
        return None if returned is None else len(returned[1])

    @contextmanager
    def replaced(self, forwards: Mapping[int, ForwardFunction]) -> Iterator[None]:
        """While open, these blocks run other forwards in place of their own."""
        # An instance attribute shadows the class's forward. There may be one already: an outer context's, or a hook
        # of accelerate's; it is put back as it was.
        before: dict[int, ForwardFunction | None] = {i: vars(self.modules[i]).get("forward") for i in forwards}
        for index, forward in forwards.items():
            self.modules[index].forward = forward
        try:
            yield
        finally:
            for index, shadowed in before.items():
                if shadowed is None:
                    del self.modules[index].forward
                else:
                    self.modules[index].forward = shadowed

    def _check_stream(self) -> None:
        """Check on four tokens that each block runs once, in order, on what the one before it put out."""
        order: list[int] = []
        inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        outputs: list[Any] = []

        def before(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                order.append(index)
                inputs.append((args, kwargs))

            return hook

        with ExitStack() as stack:
            for index, module in enumerate(self.modules):
                stack.callback(module.register_forward_pre_hook(before(index), with_kwargs=True).remove)
                after = module.register_forward_hook(lambda module, args, output: outputs.append(output))
                stack.callback(after.remove)
            with torch.no_grad():  # not inference mode: what a model caches here may later be trained through
                self._try_forward()
        name = type(self.model).__name__
        if order != sorted(set(order)) or not order:
            raise UnsupportedModelError(f"{name} does not run the blocks of {self.path} once each, in order.")
        self.unread = tuple(index for index in range(len(self)) if index not in order)
        last = stream_out(outputs[-1])
        self.plain_stream = last.ndim == 3
        self.stream_bytes, self.stream_device = last.nbytes // (last.shape[0] * last.shape[1]), last.device
        for index, output, (args, kwargs), following in zip(order, outputs, inputs, [*inputs[1:], None], strict=True):
            stream_in(args, kwargs)
            out = stream_out(output)
            if following is not None:
                handed_in = stream_in(*following)
                if out.shape != handed_in.shape or not torch.equal(out.to(handed_in.device), handed_in):
                    raise UnsupportedModelError(
                        f"In {name} the input of block {index + 1} is not the output of block {index}: "
                        f"{self.path} is not a plain stack.",
                        RESCALED if getattr(self.config, "rescale_every", 0) else "",
                    )
            if isinstance(output, (tuple, list)):
                further = [taken_as(item, following) for item in output[1:]]
                previous = self._returned[index - 1] if index else None
                if following is None and previous is not None and len(previous[1]) == len(further):
                    further = previous[1]  # nothing follows the last block: it hands on what those before it do
                self._returned[index] = (getattr(type(output), "_make", type(output)), further)

    def _try_forward(self) -> None:
        try:
            self.forward(torch.arange(4)[None] % self.config.vocab_size)
        except StreamlinerError:
            raise
        except Exception as error:  # a model that wants more than text raises whatever it likes
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not run on text alone: {type(error).__name__}: {error}"
            ) from error
