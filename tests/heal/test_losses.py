"""Losses and their gradients against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from streamliner.heal import losses


@pytest.mark.parametrize("at_once", [1 << 30, 4 * 50 * 3 * 2])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("weights", [{"lm": 1.0}, {"kd": 1.0}, {"lm": 0.3, "kd": 0.7}])
def test_head_losses_and_gradients_equal_autograd(monkeypatch, at_once, top_k, weights):
    monkeypatch.setattr(losses, "LOGIT_BYTES", at_once)
    monkeypatch.setattr(losses, "rows_at_once", lambda logits: 2)
    torch.manual_seed(0)
    head_weight = torch.randn(50, 8)
    stream, dense = torch.randn(3, 7, 8, requires_grad=True), torch.randn(3, 7, 8)
    ids = torch.randint(0, 50, (3, 7))
    streams, head = (stream, dense if "kd" in weights else None), lambda s, p: s[:, p] @ head_weight.T
    total, parts = losses.head_losses(*streams, ids, head, weights=weights, top_k=top_k, vocab_size=50)
    (gradient,) = torch.autograd.grad(2 * total, stream)

    logits, goal = ((each[:, :-1] @ head_weight.T).flatten(0, 1).log_softmax(-1) for each in (stream, dense))
    plain = {"lm": functional.nll_loss(logits, ids[:, 1:].flatten())}
    if top_k:
        goal, chosen = goal.topk(top_k, -1)
        logits = logits.gather(-1, chosen)
        logits, goal = (torch.cat([x, (1 - x.exp().sum(-1, keepdim=True)).log()], -1) for x in (logits, goal))
    plain["kd"] = functional.kl_div(logits, goal, reduction="batchmean", log_target=True)
    expected = sum(weight * plain[name] for name, weight in weights.items())
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {name: plain[name].item() for name in weights}, rel=1e-5
    )
    torch.testing.assert_close(gradient, torch.autograd.grad(2 * expected, stream)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [{"lm": 1.0}, {"kd": 1.0}, {"lm": 0.3, "kd": 0.7}])
def test_predictions_that_do_not_count_have_no_part_in_the_mean(monkeypatch, weights):
    monkeypatch.setattr(losses, "LOGIT_BYTES", 4 * 50 * 3 * 2)
    monkeypatch.setattr(losses, "rows_at_once", lambda logits: 2)
    torch.manual_seed(0)
    head_weight = torch.randn(50, 8)
    stream, dense = torch.randn(3, 7, 8, requires_grad=True), torch.randn(3, 7, 8)
    ids, counted = torch.randint(0, 50, (3, 7)), torch.rand(3, 6) < 0.5
    counted[:, 2:4] = False  # a piece without any
    streams, head = (stream, dense if "kd" in weights else None), lambda s, p: s[:, p] @ head_weight.T
    options = {"weights": weights, "top_k": None, "vocab_size": 50}
    total, _ = losses.head_losses(*streams, ids, head, counted=counted, **options)
    logits, goal = ((each[:, :-1] @ head_weight.T)[counted].log_softmax(-1) for each in (stream, dense))
    plain = {"lm": functional.nll_loss(logits, ids[:, 1:][counted])}
    plain["kd"] = functional.kl_div(logits, goal, reduction="batchmean", log_target=True)
    expected = sum(weight * plain[name] for name, weight in weights.items())
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(each, stream)[0] for each in (total, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    nothing, _ = losses.head_losses(*streams, ids, head, counted=torch.zeros(3, 6, dtype=torch.bool), **options)
    assert nothing.item() == 0


def test_gradients_in_float16_neither_vanish_nor_overflow():
    """Near convergence, and with the first scale of a scaler: the same as in float32 up to rounding."""
    torch.manual_seed(0)
    head_weight, dense = torch.randn(50, 8) * 0.3, torch.randn(4, 65, 8)
    ids = torch.randint(0, 50, (4, 65))
    gradients = []
    for dtype in (torch.float32, torch.float16):
        stream = (dense + 1e-2).to(dtype).requires_grad_(True)
        head = lambda s, p, dtype=dtype: s[:, p] @ head_weight.to(dtype).T  # noqa: E731
        streams = stream, dense.to(dtype)
        total, _ = losses.head_losses(*streams, ids, head, weights={"kd": 1.0}, top_k=None, vocab_size=50)
        (total * 65536).backward()
        gradients.append(stream.grad.float())
    assert gradients[1].isfinite().all()
    assert (gradients[1][:, :-1] != 0).float().mean() > 0.99
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.2, atol=gradients[0].abs().max().item() * 0.2)


def test_stream_losses_leave_bos_out_and_normalise():
    output, target = torch.zeros(1, 3, 2), torch.tensor([[[1e4, 0.0], [2.0, 0.0], [0.0, 4.0]]])
    assert losses.stream_loss("mse", output, target, first=1).item() == pytest.approx((4 / 2 + 16 / 2) / 2)
    assert losses.stream_loss("normalized-mse", output, target, first=1).item() == pytest.approx(1.0)
    assert losses.stream_loss("mse", output, target, first=0).item() > 1e7
