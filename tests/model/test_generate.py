"""Generation with a cache token by token, and through `generate`."""

from __future__ import annotations

import pytest
import torch

from families import make_model
from streamliner.model.blocks import Blocks
from streamliner.model.generate import (
    cache_bytes,
    cache_numbers,
    continue_greedily,
    fill_cache,
    greedy,
    greedy_scores,
    padding_token,
    write,
)

PROMPTS = torch.randint(2, 128, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def by_whole_forwards(blocks, ids, new_tokens):
    for _ in range(new_tokens):
        ids = torch.cat([ids, blocks.forward(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_greedy_tokens_are_those_of_whole_forwards(family):
    blocks = Blocks(make_model(family))
    expected = by_whole_forwards(blocks, PROMPTS, 5)
    assert torch.equal(greedy(blocks, PROMPTS, 5), expected[:, -1:])
    assert torch.equal(write(blocks, PROMPTS[0], 5), expected[0])


def test_write_continues_past_the_end_of_text_and_leaves_the_generation_config():
    blocks = Blocks(make_model("llama"))
    own = blocks.model.generation_config
    own.eos_token_id = own.pad_token_id = by_whole_forwards(blocks, PROMPTS[:1], 1)[0, -1].item()
    assert len(write(blocks, PROMPTS[0], 5)) == 9 + 5
    assert blocks.model.generation_config is own
    assert len(continue_greedily(blocks, PROMPTS[0], 5)) == 1


def test_sampling_depends_on_the_seed_alone():
    blocks = Blocks(make_model("llama"))
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(write(blocks, PROMPTS[0], 12, sampled=True))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("use_cache", [True, False])
def test_scores_of_each_step(use_cache):
    blocks = Blocks(make_model("llama"))
    ones = torch.ones_like(PROMPTS)
    tokens, scores = greedy_scores(blocks.model, PROMPTS, ones, 4, use_cache=use_cache, pad=1)
    assert tokens.shape == (2, 4)
    assert [each.shape for each in scores] == [(2, 128)] * 4
    assert torch.equal(torch.stack([each.argmax(-1) for each in scores], dim=1), tokens)


def test_bytes_of_a_cache():
    """Two heads of width 8 for keys and for values, in 6 blocks of which some have a sliding window of 8."""
    full = Blocks(make_model("llama"))
    assert cache_bytes(fill_cache(full, PROMPTS), 2 * 9) == (2 * 2 * 8 * 4 * 6, 2 * 2 * 2 * 8 * 4 * 6)
    sliding = Blocks(make_model("mistral"))
    per_token, per_further_token = cache_bytes(fill_cache(sliding, PROMPTS), 2 * 9)
    assert per_token <= 2 * 2 * 8 * 4 * 6
    assert per_further_token == 0
    assert cache_bytes(None, 18) is None


def test_numbers_of_the_cache_are_keys_and_values_of_each_head():
    assert cache_numbers(make_model("llama").config) == 2 * 2 * 8


def test_the_padding_token_is_one_of_the_config():
    config = make_model("llama").config
    assert padding_token(config) == 1
    config.pad_token_id = None
    config.eos_token_id = 7
    assert padding_token(config) == 7
    config.eos_token_id = [7, 8]
    assert padding_token(config) == 0
