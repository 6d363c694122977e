"""What a block takes and returns."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from streamliner.errors import UnsupportedModelError
from streamliner.model.handoff import Call, Handoff, stream_out

STREAM, OTHER, STATE = torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.tensor(7.0)
Output = namedtuple("Output", ["stream", "state"])


@pytest.mark.parametrize(
    "call", [Call((STREAM, STATE), {"mask": None}), Call((), {"hidden_states": STREAM, "state": STATE})]
)
def test_a_call_on_another_stream_keeps_all_else(call):
    assert call.stream is STREAM
    changed = call.with_stream(OTHER)
    assert changed.stream is OTHER
    assert changed.get(changed.find(STATE)) is STATE
    assert call.stream is STREAM
    assert changed.find(torch.tensor(7.0)) is None


def test_a_call_without_a_stream_is_refused():
    with pytest.raises(UnsupportedModelError, match="first argument"):
        _ = Call((), {}).stream
    with pytest.raises(UnsupportedModelError, match="return the residual stream"):
        stream_out({"stream": STREAM})


def test_floating_tensors_are_widened_also_in_tuples():
    half, ids = STREAM.half(), torch.tensor([1])
    wide = Call((half, (half, ids)), {"mask": None}).float()
    assert wide.stream.dtype == wide.args[1][0].dtype == torch.float32
    assert wide.args[1][1] is ids


@pytest.mark.parametrize("make", [lambda *items: items, lambda *items: list(items), Output])
def test_a_bypassed_block_returns_its_own_type_with_the_state_it_got(make):
    returned = make(OTHER, STATE)
    handoff = Handoff.of(returned, Call((OTHER,), {"state": STATE}))
    assert handoff.arrives_at == ("state",)
    before = torch.tensor(3.0)
    bypassed = handoff.bypassed(STREAM, Call((STREAM,), {"state": before}))
    assert type(bypassed) is type(returned)
    assert list(bypassed) == [STREAM, before]
    assert list(Handoff.of(returned, None).bypassed(STREAM, Call((), {}))) == [STREAM, None]


def test_a_bare_stream_stays_bare():
    handoff = Handoff.of(OTHER, Call((OTHER,), {}))
    assert handoff.further_items is None
    assert handoff.bypassed(STREAM, Call((OTHER,), {})) is STREAM
