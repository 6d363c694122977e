"""Finding the stack, bypassing, resuming and watching."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from close import assert_close
from families import FAMILIES, make_model
from streamliner.errors import RemovalError, UnsupportedModelError
from streamliner.model.blocks import Blocks
from streamliner.model.handoff import stream_out

IDS = torch.randint(2, 128, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_bypass_skips_exactly_the_named_blocks(family):
    """A block with broken weights changes nothing while it is bypassed, and everything otherwise."""
    blocks = Blocks(make_model(family))
    with torch.inference_mode():
        plain = blocks.forward(IDS).logits
        with blocks.bypass([1, 3]):
            bypassed = blocks.forward(IDS).logits
            for index in (1, 3):
                for parameter in blocks.modules[index].parameters():
                    parameter.data.fill_(float("nan"))
            assert torch.equal(blocks.forward(IDS).logits, bypassed)
        assert blocks.forward(IDS).logits.isnan().any()
    assert not torch.allclose(plain, bypassed, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_resume_equals_the_whole_forward(family):
    blocks = Blocks(make_model(family))
    streams = {}
    with torch.inference_mode():
        with blocks.watch(lambda depth, stream: streams.__setitem__(depth, stream)):
            whole = blocks.forward(IDS).logits
        assert sorted(streams) == list(range(7))
        for depth in range(1, 7):
            assert_close(blocks.resume(depth, streams[depth], IDS).logits, whole)
        with blocks.bypass([4]):
            expected = blocks.forward(IDS).logits
            assert_close(blocks.resume(3, streams[3], IDS).logits, expected)


def test_bypass_equals_deleting_the_blocks_from_the_list(blocks, calibration):
    """The plainest removal there is, on a family where it is allowed."""
    ids = calibration.windows[:1]
    with torch.inference_mode():
        with blocks.bypass([2, 7, 11]):
            bypassed = blocks.forward(ids).logits
        layers = blocks.model.model.layers
        blocks.model.model.layers = nn.ModuleList([layers[i] for i in range(12) if i not in (2, 7, 11)])
        assert_close(blocks.model(input_ids=ids, use_cache=False).logits, bypassed)


def test_bypass_leaves_no_trace_even_after_an_error(blocks):
    with pytest.raises(RuntimeError, match="boom"), blocks.bypass([0]), blocks.bypass([0, 5]):
        raise RuntimeError("boom")
    assert all("forward" not in vars(module) for module in blocks.modules)


def test_bypass_inside_another_hook_on_forward_puts_it_back(blocks):
    hook = blocks.modules[3].forward
    blocks.modules[3].forward = hook
    with blocks.bypass([3]):
        assert blocks.modules[3].forward is not hook
    assert blocks.modules[3].forward is hook


@pytest.mark.parametrize(
    ("removed", "message"),
    [([12], "no block 12"), ([-1], "no block -1"), ([3, 3], "twice"), (range(12), "All 12 blocks")],
)
def test_impossible_removals_are_refused(blocks, removed, message):
    with pytest.raises(RemovalError, match=message), blocks.bypass(removed):
        pass


def test_a_stack_of_another_length_is_refused(tiny):
    tiny.config.num_hidden_layers = 11
    with pytest.raises(UnsupportedModelError, match=r"counts \[11\] blocks.*\[12\]"):
        Blocks(tiny)


def test_something_between_the_blocks_is_refused(tiny):
    """A loop that changes the stream between blocks is not a plain stack."""
    tiny.model.layers[4].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]), prepend=True)
    with pytest.raises(UnsupportedModelError, match="input of block 4 is not the output of block 3"):
        Blocks(tiny)


@pytest.mark.parametrize("used", [False, True])
def test_state_besides_the_stream_passes_a_bypass(tiny, used):
    """State that the next block takes passes unchanged; items that no block takes are None."""
    seen = []

    class Chatty(nn.Module):
        def __init__(self, inner, index):
            super().__init__()
            self.inner, self.index = inner, index

        def forward(self, stream, state=None, **kwargs):
            seen.append((self.index, None if state is None else state.item()))
            return self.inner(stream, **kwargs), torch.tensor(float(self.index))

    class Loop(nn.ModuleList):
        """A model's loop that unpacks tuples and passes state on."""

        def __getitem__(self, key):
            state = [None]

            def call(block):
                def run(stream, **kwargs):
                    stream, state[0] = block(stream, state=state[0] if used else None, **kwargs)
                    return stream

                return run

            return [call(block) for block in self] if isinstance(key, slice) else super().__getitem__(key)

    tiny.model.layers = Loop([Chatty(block, i) for i, block in enumerate(tiny.model.layers)])
    blocks = Blocks(tiny)
    assert blocks.hands_on_state is used
    assert blocks.handoffs[3].further_items == 1
    seen.clear()
    with blocks.bypass([3, 4]):
        blocks.forward(IDS)
    assert [index for index, _ in seen] == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert dict(seen)[5] == (2.0 if used else None)


def test_a_block_is_called_with_the_stream_at_its_depth(blocks, calibration):
    ids = calibration.windows[:1]
    call = blocks.called_with(5, ids)
    with torch.inference_mode():
        streams = blocks.streams(ids, [5, 6])
        assert_close(call.stream, streams[5])
        assert_close(stream_out(call.run(blocks.modules[5])), streams[6])
