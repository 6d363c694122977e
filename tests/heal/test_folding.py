"""Repairs in closed form: against least squares on stored activations, guarded by held-out loss, and on disk."""

from __future__ import annotations

import copy
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GraniteConfig

import streamliner as sl
from close import assert_close
from command import run
from families import SMALL, make_model
from healing import REMOVED, few_answers, settings, training_text
from kill import finish
from places import TINY
from streamliner.cut.memory import cut_model
from streamliner.errors import HealingError
from streamliner.heal import folding, healing
from streamliner.heal.folding import AUTO, FOLDS, Folding
from streamliner.heal.folds import fitting, neurons
from streamliner.heal.folds.neurons import Neurons, find_pool, put_neurons
from streamliner.heal.folds.regression import Ridge, RidgePerChannel
from streamliner.heal.graft import Graft
from streamliner.heal.merge import merge
from streamliner.heal_settings import FOLD_NAMES
from streamliner.measure.loss import text_loss
from streamliner.model import last_map
from streamliner.model.blocks import Blocks
from streamliner.model.last_map import find_last_map
from streamliner.text.chat import counted

SAMPLE = torch.arange(8, 40)[None]


def fold(model, tokenizer, name, removed=REMOVED, *, tokens=None, later=False, **changes):
    """What was tried, and the graft."""
    text = training_text(tokenizer, settings(**changes))
    graft = Graft(Blocks(model), (), {}, removed)
    return Folding(graft, text, name, tokens, later, lambda message: None).run(), graft


def granite(residual_multiplier):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GraniteConfig(**SMALL, residual_multiplier=residual_multiplier)).eval()


@pytest.mark.parametrize(
    ("family", "path", "linear", "other"),
    [
        ("llama", "mlp.down_proj", True, {}),
        ("phi3", "mlp.down_proj", True, {}),
        ("gpt2", "mlp.c_proj", True, {"input_first": True}),
        ("opt", "fc2", True, {}),
        ("gpt_neox", "mlp.dense_4h_to_h", True, {}),  # attention and feed-forward side by side
        ("gemma2", "post_feedforward_layernorm", False, {"adds_one": True}),
        ("olmo2", "post_feedforward_layernorm", False, {"adds_one": False}),
    ],
)
def test_the_last_map_is_found_by_trying(family, path, linear, other):
    last = find_last_map(Blocks(make_model(family)), 2, SAMPLE)
    assert (last.path, last.is_linear) == (path, linear)
    assert last.scale == pytest.approx(1, rel=1e-3)
    assert all(getattr(last, name) == value for name, value in other.items())


def test_a_factor_for_what_blocks_write_is_found():
    last = find_last_map(Blocks(granite(0.22)), 2, SAMPLE)
    assert (last.path, last.scale) == ("mlp.down_proj", pytest.approx(0.22, rel=1e-3))


def test_experts_have_no_last_map_but_a_shared_expert_is_one():
    assert find_last_map(Blocks(make_model("mixtral")), 2, SAMPLE) is None
    blocks = Blocks(make_model("deepseek_v3"))
    assert find_last_map(blocks, 0, SAMPLE).path == "mlp.down_proj"
    assert find_last_map(blocks, 3, SAMPLE).path == "mlp.shared_experts.down_proj"


@pytest.mark.parametrize("removed", [(0,), (0, 1), (0, 5)])
def test_a_gap_at_the_start_is_judged_on_the_healed_model(tiny, tokenizer, removed):
    """No block is below it, so the dense model's stream there is not the healed one's."""
    done, graft = fold(tiny, tokenizer, "gain", removed)
    assert done
    best = done[0].loss_before
    for each in done:
        best = each.loss_after if each.kept else best
    with graft.in_place():
        after = text_loss(graft.blocks, training_text(tokenizer, settings()).validation).mean
    assert after == pytest.approx(best, abs=1e-5)
    dense = text_loss(graft.blocks, training_text(tokenizer, settings()).validation).mean
    assert after > dense + 0.1


def test_where_only_answers_count_they_judge_a_fold(tiny, tokenizer, tmp_path):
    """The mean over their tokens, so a window without an answer has no say."""
    text = training_text(tokenizer, settings(data=few_answers(tmp_path), answers_only=True, loss="lm"))
    graft = Graft(Blocks(tiny), (), {}, REMOVED)
    found = Folding(graft, text, "gain", None, False, lambda message: None)._loss()
    with torch.no_grad(), graft.in_place():
        log_p = tiny(text.validation).logits[:, :-1].log_softmax(-1)
    each = -log_p.gather(-1, text.validation[:, 1:, None])[..., 0]
    assert (counted(text.held_out).sum(1) == 0).any()
    assert found == pytest.approx(each[counted(text.held_out)].mean().item(), rel=1e-5)


def test_streams_that_do_not_fit_are_not_kept(tiny, tokenizer, monkeypatch):
    """The repair is the same."""
    usual = fold(tiny, tokenizer, "refit", (3, 4, 8), tokens=256, later=True)[0]
    monkeypatch.setattr(folding, "MOST_KEPT", 0)
    most = []
    collect = Folding._collect

    def watched(self, windows, fit):
        found = collect(self, windows, fit)
        most.append(len(self._dense[1]) + len(self._own[1]))
        return found

    monkeypatch.setattr(Folding, "_collect", watched)
    slow = fold(tiny, tokenizer, "refit", (3, 4, 8), tokens=256, later=True)[0]
    assert set(most) == {0}
    assert [each.loss_after for each in slow] == pytest.approx([each.loss_after for each in usual], abs=1e-5)


def test_sums_give_the_least_squares_of_all_tokens():
    generator = torch.Generator().manual_seed(0)
    features, targets = (torch.randn(300, size, generator=generator, dtype=torch.float64) for size in (7, 5))
    ridge, each = Ridge(), RidgePerChannel()
    for rows in torch.split(torch.arange(300), 32):
        ridge.add(features[rows], targets[rows])
        each.add(features[rows, :5], targets[rows])
    expected = torch.linalg.lstsq(features, targets).solution.float()
    assert torch.allclose(ridge.solve(0.0), expected, atol=1e-6)
    smaller = torch.linalg.solve(
        features.T @ features + 0.5 * (features**2).sum(0).mean() * torch.eye(7), features.T @ targets
    )
    assert torch.allclose(ridge.solve(0.5), smaller.float(), atol=1e-6)
    assert torch.allclose(
        each.solve(0.0), ((features[:, :5] * targets).sum(0) / (features[:, :5] ** 2).sum(0)).float(), atol=1e-6
    )


@pytest.mark.parametrize("name", FOLDS)
def test_a_fold_lowers_the_loss_of_the_trained_model(tiny, tokenizer, name):
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    done, graft = fold(tiny, tokenizer, name)
    assert [(each.block, each.depth) for each in done] == [(3, 6), (8, 10)]
    assert done[0].loss_after < done[0].loss_before
    for earlier, later in itertools.pairwise(done):
        assert later.loss_before == min(earlier.loss_before, earlier.loss_after)
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())
    text = training_text(tokenizer, settings())
    with graft.in_place():
        found = text_loss(graft.blocks, text.validation).mean
    assert found == pytest.approx(done[-1].loss_after if done[-1].kept else done[-1].loss_before, rel=1e-6)
    gaps = sum(each.loss_before - each.loss_after for each in done if each.kept)
    assert gaps > {"refit": 0.1, "replaceme": 0.05, "gain": 0.003, "neurons": 0.1}[name]


def test_what_a_feature_is_worth_is_what_its_removal_costs():
    """By fits of the others alone, with a penalty for the distance from a prior."""
    generator = torch.Generator().manual_seed(1)
    features, targets, prior = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((200, 6), (200, 3), (6, 3))
    )
    ridge, some, penalty = Ridge(), torch.tensor([0, 2, 3, 5]), 0.3
    ridge.add(features, targets)

    def least(kept):
        """The least sum of squares and penalty; what is not kept is 0, and its penalty the same everywhere."""
        x, start = features[:, kept], prior[kept]
        weight = penalty * features[:, some].square().sum(0).mean()
        gram = x.T @ x + weight * torch.eye(len(kept), dtype=torch.float64)
        found = start + torch.linalg.solve(gram, x.T @ (targets - x @ start))
        gone = [each for each in some.tolist() if each not in kept]
        rest = weight * ((found - start).square().sum() + prior[gone].square().sum())
        return found, (targets - x @ found).square().sum() + rest

    whole = least(some.tolist())
    assert torch.allclose(ridge.solve(penalty, some, prior), whole[0].float(), atol=1e-5)
    without = [least([each for each in some.tolist() if each != gone])[1] - whole[1] for gone in some.tolist()]
    assert torch.allclose(ridge.worth(penalty, some, prior), torch.stack(without), rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "usable"),
    [
        *((name, True) for name in ("llama", "qwen3", "gemma2", "gemma3", "olmo2")),
        *((name, False) for name in ("phi3", "gpt2", "opt")),  # gate and up are one map, or there is no gate
    ],
)
def test_neurons_of_another_block_compute_in_this_one_what_they_did(family, usable):
    """On the same stream: what the other block's norm and neurons make of it, the new part makes after its own norm."""
    model = make_model(family, vocab_size=128)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand_like(parameter))
    blocks, removed = Blocks(model), (2, 3)
    last = find_last_map(blocks, 1, SAMPLE)
    pool = find_pool(blocks, 1, last.linear or last, removed, SAMPLE)
    assert (pool is not None) == usable
    if pool is None:
        return
    assert [source.part for source in pool.sources] == [blocks.modules[each].mlp for each in removed]
    part, stream = copy.deepcopy(blocks.modules[1].mlp), torch.randn(5, 32)
    norm = {"olmo2": None, "llama": "post_attention_layernorm", "qwen3": "post_attention_layernorm"}
    seen = [
        stream if path is None else blocks.modules[at].get_submodule(path)(stream)
        for path in [norm.get(family, "pre_feedforward_layernorm")]
        for at in (1, 3)
    ]
    some = torch.tensor([5, 1, 40])
    put_neurons(part, pool.sources, [torch.arange(45), some])
    values = []
    for each, given in ((part, seen[0]), (blocks.modules[3].mlp, seen[1])):
        handle = each.down_proj.register_forward_hook(lambda _, args, __: values.append(args[0]))
        each(given)
        handle.remove()
    assert_close(values[0][:, 45:], values[1][:, some])


@pytest.mark.parametrize("wrong", ["norm", "order", "width"])
def test_neurons_that_would_compute_something_else_are_not_taken(tiny, wrong):
    """A norm that is not the block's own times factors, values that depend on each other, and another width."""
    model = copy.deepcopy(tiny)
    other, blocks = model.model.layers[4], Blocks(model)
    if wrong == "norm":
        inner = other.post_attention_layernorm.forward
        other.post_attention_layernorm.forward = lambda stream: inner(stream).sin()
    elif wrong == "order":
        other.mlp.down_proj.register_forward_pre_hook(lambda _, args: (args[0] * torch.arange(256.0),))
    else:
        other.mlp = type(other.mlp)(AutoConfig.from_pretrained(TINY, intermediate_size=128))
    pool = find_pool(blocks, 3, find_last_map(blocks, 3, SAMPLE), (4, 5), SAMPLE)
    assert [source.part for source in pool.sources] == [model.model.layers[5].mlp]


@pytest.mark.parametrize("bias", [False, True])
def test_the_sums_of_neurons_give_the_refit_too(tokenizer, bias, monkeypatch):
    """The same weights and bias; a bias stays whatever neurons stay."""
    better = iter(range(100, 0, -1))
    monkeypatch.setattr(Folding, "_loss", lambda *args: next(better))
    model = make_model("llama", vocab_size=1024, mlp_bias=bias)
    found = {}
    for names in (("refit",), ("neurons",)):
        monkeypatch.setattr(Neurons, "names", names)
        found[names] = fold(model, tokenizer, "neurons", (2, 3))[1].networks[1].mlp.down_proj
    refit = fold(model, tokenizer, "refit", (2, 3))[1].networks[1].mlp.down_proj
    for (name, one), other in zip(refit.named_parameters(), found["refit",].parameters(), strict=True):
        assert_close(other, one)
        before = model.model.layers[1].mlp.down_proj.get_parameter(name)
        assert not torch.allclose(one, before, atol=1e-3)
        assert not torch.allclose(found["neurons",].get_parameter(name), before, atol=1e-3)


def test_a_part_that_is_too_wide_for_more_candidates_keeps_its_own_neurons(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(neurons, "MOST", 256)
    assert [each.fold for each in fold(tiny, tokenizer, "neurons", (2, 3))[0]] == ["refit"]
    monkeypatch.setattr(neurons, "MOST", 300)
    monkeypatch.setattr(Neurons, "names", ("neurons",))
    sizes = []
    monkeypatch.setattr(Neurons, "_best", lambda self: sizes.append(self.sums.size) or self._own())
    fold(tiny, tokenizer, "neurons", (2, 3))
    assert sizes == [300]


def test_neurons_are_fitted_by_least_squares_and_are_never_worse_than_a_refit(tiny, tokenizer, monkeypatch):
    """On the held-out windows, as both are tried; here the best neurons are some of each block."""
    monkeypatch.setattr(folding, "PENALTIES", (1e-9,))
    monkeypatch.setattr(fitting, "SINK", 1e9)
    monkeypatch.setattr(Neurons, "names", ("neurons",))
    done, graft = fold(tiny, tokenizer, "neurons", (8, 9), tokens=64 * 40)
    assert [each.fold for each in done] == ["neurons"]
    part, dense = graft.networks[7].mlp, tiny.model.layers
    theirs = torch.cat([dense[at].mlp.up_proj.weight for at in (8, 9)])
    ratio = torch.cat([(dense[at].post_attention_layernorm.weight).expand(256, -1) for at in (8, 9)])
    theirs = theirs * ratio / dense[7].post_attention_layernorm.weight
    own = (part.up_proj.weight[:, None] == dense[7].mlp.up_proj.weight).all(-1)
    foreign = torch.cdist(part.up_proj.weight, theirs, compute_mode="donot_use_mm_for_euclid_dist") < 1e-4
    assert 20 < own.any(1).sum() < 236
    assert torch.equal(own.any(1), ~foreign.any(1))  # each is one of these
    text, inputs, missing = training_text(tokenizer, settings()), [], []
    handle = part.down_proj.register_forward_hook(lambda _, args, __: inputs.append(args[0].reshape(-1, 256)))
    with torch.no_grad():
        for _ in range(40):
            ids, attended = text.batch(1), []
            hook = dense[7].mlp.register_forward_pre_hook(lambda _, args, into=attended: into.append(args[0]))
            streams = graft.blocks.streams(ids, {7, 8, 10})
            hook.remove()
            made = dense[7].mlp(attended[0])
            part(attended[0])
            missing.append((streams[10] - streams[8] + made).reshape(-1, 96))
    handle.remove()
    expected = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(missing).double()).solution.T.float()
    assert (part.down_proj.weight - expected).norm() < 1e-2 * expected.norm()
    monkeypatch.undo()
    for removed, gain in (((8, 9), -1e-6), ((2, 3), 1e-3)):
        both, one = (fold(tiny, tokenizer, name, removed)[0][0].loss_after for name in ("neurons", "refit"))
        assert one - both > gain


@pytest.mark.parametrize("sink", [1e9, 1.0])
def test_a_refit_is_least_squares_on_stored_activations(tiny, tokenizer, monkeypatch, sink):
    """All inputs of the map and all that the stream lacks, stored and solved at once; sinks weigh as others do."""
    monkeypatch.setattr(folding, "PENALTIES", (1e-9,))
    monkeypatch.setattr(fitting, "SINK", sink)
    done, graft = fold(tiny, tokenizer, "refit", (4, 5), tokens=64 * 20)
    text = training_text(tokenizer, settings())
    windows = torch.stack([text.batch(1)[0] for _ in range(20)])
    inputs, missing = [], []
    blocks = Blocks(tiny)
    down = blocks.modules[3].mlp.down_proj
    handle = down.register_forward_hook(lambda _, args, __: inputs.append(args[0].reshape(-1, 256)))
    with torch.no_grad():
        for ids in windows[:, None]:
            streams = blocks.streams(ids, {4, 6})
            lengths = streams[6][0].norm(dim=1, keepdim=True)
            share = (lengths.median() / lengths).where(lengths > sink * lengths.median(), 1.0)
            inputs[-1] *= share
            missing.append((streams[6] - streams[4]).reshape(-1, 96) * share)
    handle.remove()
    expected = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(missing).double()).solution.T.float()
    change = graft.networks[3].mlp.down_proj.weight - down.weight if done[0].kept else None
    assert done[0].tokens == 1280
    assert change is not None
    assert (change - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", ["auto", "replaceme"])
@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_fold_through_a_norm_is_least_squares_on_what_the_norm_scales(tokenizer, family, name, monkeypatch):
    """The norm divides by the root of the mean square, which is held; then its own factors are fitted."""
    monkeypatch.setattr(folding, "PENALTIES", (1e-9,))
    monkeypatch.setattr(fitting, "SINK", 1e9)
    monkeypatch.setattr(folding, "ROUNDS", 1)
    better = iter(range(100, 0, -1))
    monkeypatch.setattr(Folding, "_loss", lambda *args: next(better))
    model = make_model(family, vocab_size=1024)
    done, graft = fold(model, tokenizer, name, (2, 3), tokens=64 * 20)
    assert [each.fold for each in done] == ["refit" if name == "auto" else name, "gain"]
    windows = done[0].tokens // 64
    text, blocks = training_text(tokenizer, settings()), Blocks(model)
    norm = blocks.modules[1].post_feedforward_layernorm
    factors = norm.weight + (1 if family == "gemma2" else 0)
    inputs, missing = [], []

    def note(_, args, made):
        scale = made.square().mean(-1, keepdim=True).sqrt()
        inputs.append(((args[0] if name == "auto" else made) / scale).flatten(0, 1))

    handle = blocks.modules[1].mlp.down_proj.register_forward_hook(note)
    with torch.no_grad():
        for _ in range(windows):
            streams = blocks.streams(text.batch(1), {2, 4})
            missing.append(((streams[4] - streams[2]) / factors).flatten(0, 1))
    handle.remove()
    expected = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(missing).double()).solution.T.float()
    before = blocks.modules[1].mlp.down_proj.weight
    expected = expected if name == "auto" else expected @ before
    change = graft.networks[1].mlp.down_proj.weight - before
    assert (change - expected).norm() < 1e-2 * expected.norm()
    assert not torch.equal(graft.networks[1].post_feedforward_layernorm.weight, norm.weight)


def test_streams_that_are_kept_change_nothing(tiny, tokenizer, monkeypatch):
    found = fold(tiny, tokenizer, "refit", later=True, tokens=1024)
    monkeypatch.setattr(folding, "MOST_KEPT", 0)
    without = fold(tiny, tokenizer, "refit", later=True, tokens=1024)
    assert [each.block for each in found[0]] == [3, 6, 7, 8, 10, 11]
    for one, other in zip(found[0], without[0], strict=True):
        assert one.loss_after == pytest.approx(other.loss_after, rel=1e-5)
        assert one.kept == other.kept


def test_settings_name_every_fold():
    assert (*FOLDS, AUTO) == FOLD_NAMES


def test_models_in_memory(tiny, tokenizer):
    small = sl.cut(tiny, REMOVED)
    few = {"fold_tokens": 4096, "validation_windows": 4, "sequence_length": 64, "quiet": True}
    folded = sl.heal(small, dense=tiny, tokenizer=tokenizer, fold="refit", data="python-docs", **few)
    changed = {name for name, value in small.state_dict().items() if not torch.equal(value, folded.state_dict()[name])}
    assert "model.layers.3.mlp.down_proj.weight" in changed
    assert all(name.endswith("mlp.down_proj.weight") for name in changed)


def test_whole_blocks_of_a_model_in_half_precision_are_trained_after_a_fold(tokenizer):
    """GPT-2's maps do not take a stream in bfloat16 with weights in float32, which trained blocks have."""
    model = make_model("gpt2", vocab_size=len(tokenizer)).to(torch.bfloat16)
    short = {"sequence_length": 32, "steps": 2, "global_batch_size": 2, "validation_windows": 2, "quiet": True}
    chosen = {"fold": "refit", "network": "none", "train_blocks": 2, "loss": "kd", "data": "python-docs"}
    small = sl.cut(model, [2, 3])
    healed = sl.heal(small, dense=model, tokenizer=tokenizer, **chosen, **short)
    changed = {name for name, value in small.state_dict().items() if not torch.equal(value, healed.state_dict()[name])}
    assert any(name.startswith("transformer.h.3.") for name in changed)


def test_a_range_test_in_float16_is_refused_before_a_fold(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(Folding, "run", lambda folding: pytest.fail("folded"))
    monkeypatch.setattr(healing, "make_accelerator", lambda *args: SimpleNamespace(scaler=object()))  # as on a GPU
    chosen = {"fold": "refit", "network": "none", "train_blocks": 2, "loss": "kd", "data": "python-docs", "steps": 9}
    chosen |= {"find_learning_rate": True, "sequence_length": 64, "quiet": True}
    with pytest.raises(HealingError, match="does not work in float16"):
        sl.heal(sl.cut(tiny, REMOVED), dense=tiny, tokenizer=tokenizer, **chosen)


def test_the_first_blocks_of_the_stack_are_made_up_for_by_the_one_after(tiny, tokenizer):
    done, _ = fold(tiny, tokenizer, "refit", (0, 1))
    assert [(each.block, each.depth) for each in done] == [(2, 3)]
    assert done[0].loss_after < done[0].loss_before


def test_a_repair_that_does_not_help_is_not_made(tiny, tokenizer):
    """On too few tokens it learns these by heart."""
    done, graft = fold(tiny, tokenizer, "refit", (4,), tokens=64)
    assert not done[0].kept
    assert done[0].loss_after >= done[0].loss_before
    assert graft.networks == {}


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("mixtral", "refit", "no linear map or norm that writes into the stream"),
        ("mixtral", "gain", "no linear map or norm that writes into the stream"),
        ("gemma2", "refit", "ends in a norm without a linear map before it, post_feedforward_layernorm"),
        ("olmo2", "replaceme", "ends in a norm"),
    ],
)
def test_architectures_without_a_place_are_refused(tokenizer, family, name, message, monkeypatch):
    monkeypatch.setattr(last_map, "_before", lambda *args: None)  # a norm of something else than a linear map
    with pytest.raises(HealingError, match=message):
        fold(make_model(family, vocab_size=1024), tokenizer, name, (3,))


@pytest.mark.parametrize(
    ("family", "folds"), [("llama", ["neurons"]), ("gemma2", ["neurons", "gain"]), ("gpt2", ["refit"]), ("mixtral", [])]
)
def test_auto_takes_what_the_block_has_a_place_for(tokenizer, family, folds, monkeypatch):
    monkeypatch.setattr(Neurons, "names", ("neurons",))
    done, _ = fold(make_model(family, vocab_size=1024), tokenizer, "auto", (3,))
    assert [each.fold for each in done][: len(folds)] == folds
    assert bool(done) == bool(folds)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "gpt2", "opt", "gpt_neox", "deepseek_v3"])
def test_the_folded_model_is_a_stock_model(tokenizer, family, monkeypatch):
    """Put into the model and cut, the changed blocks compute what they did beside it."""
    better = iter(range(100, 0, -1))
    monkeypatch.setattr(Folding, "_loss", lambda *args: next(better))
    model = make_model(family, vocab_size=1024)
    done, graft = fold(model, tokenizer, "gain", (2, 3))
    assert done[0].kept
    assert list(graft.networks) == [done[0].block] == [1]
    with torch.no_grad(), graft.blocks.bypass((2, 3)):
        cut = graft.blocks.forward(SAMPLE).logits
    with torch.no_grad(), graft.in_place():
        expected = graft.blocks.forward(SAMPLE).logits
    assert not torch.allclose(expected, cut, atol=1e-4)
    assert merge(graft, None, SAMPLE) == 0
    assert graft.networks == {}
    assert_close(cut_model(model, (2, 3))(input_ids=SAMPLE).logits, expected)


CUT = ["heal", "--sequence-length", "64", "--validation-windows", "4", "--dtype", "float32", "--data", "python-docs"]
FEW = ("--fold-tokens", "4096")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folding") / "cut"
    finish("cut", TINY, "--blocks", "4,5,9", "-o", folder, "-q")
    return folder


def heal(capsys, cut, out, *arguments, status=0):
    verb, *rest = CUT
    return run(capsys, verb, cut, "--dense", TINY, "-o", out, *rest, *arguments, status=status)


def test_a_fold_alone_is_a_stock_checkpoint(capsys, cut, tmp_path):
    out, err = heal(capsys, cut, tmp_path / "folded", "--fold", "refit", "--json")
    result = json.loads(out)
    assert result["training"] is None
    assert [each["block"] for each in result["folds"] if each["kept"]] == [3, 8]
    assert result["validation_perplexity"]["healed"] < result["validation_perplexity"]["cut"]
    assert result["verification"]["max_logit_difference"] < 1e-3
    assert "Block 3, refit of mlp.down_proj: loss on held-out windows" in err
    healed, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "folded", cut))
    changed = {name for name in before if not torch.equal(before[name], healed[name])}
    assert changed == {"model.layers.3.mlp.down_proj.weight", "model.layers.6.mlp.down_proj.weight"}
    assert "Fold: refit" in (tmp_path / "folded" / "README.md").read_text()
    run(capsys, "report", tmp_path / "folded.run", "-o", tmp_path / "report.html")
    assert "mlp.down_proj" in (tmp_path / "report.html").read_text()


def test_training_starts_from_a_fold(capsys, cut, tmp_path):
    train = ("--fold", "refit", *FEW, "--network", "block", "--steps", "3", "--global-batch-size", "2")
    result = json.loads(heal(capsys, cut, tmp_path / "both", *train, "--json")[0])
    perplexity = result["validation_perplexity"]
    assert perplexity["folded"] < perplexity["cut"]
    assert result["training"]["steps"] == 3
    again = json.loads(heal(capsys, cut, tmp_path / "both", *train, "--json", "--overwrite")[0])  # continues at its end
    assert again["validation_perplexity"] == perplexity


def test_adapters_are_trained_around_a_fold(capsys, cut, tmp_path):
    train = ("--fold", "gain", "--lora", "2", "--loss", "kd", "--steps", "2", "--global-batch-size", "2")
    result = json.loads(heal(capsys, cut, tmp_path / "lora", *train, "--json")[0])
    assert result["folds"]
    assert result["training"]["steps"] == 2


def test_prune_with_a_fold(capsys, tmp_path):
    search = ("--remove", "2", "--num-samples", "2", "--sequence-length", "64", "--dtype", "float32")
    out, _ = run(
        capsys,
        *("prune", TINY, *search, "--fold", "refit", *FEW, "--validation-windows", "4", "-o", tmp_path / "o", "--json"),
    )
    healing = json.loads(out)["healing"]
    assert healing["training"] is None
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "o").config.num_hidden_layers == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fold", "refi"), "refit"),
        (("--fold", "refit", "--network", "swiglu"), "--fold works only with --network block"),
        (("--fold-tokens", "9k"), "have no effect without --fold"),
        (("--fold", "refit", "--tokens", "9k"), "--tokens is for training"),
        (("--fold", "refit", "--loss", "lm"), "--loss is for training"),
        (("--fold", "refit", "--validation-windows", "0"), "held-out windows"),
    ],
)
def test_mistakes_are_named(capsys, cut, tmp_path, arguments, message):
    assert message in heal(capsys, cut, tmp_path / "x", *arguments, status=2)[1]
    assert not (tmp_path / "x").exists()
