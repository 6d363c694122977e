"""Generate text, with a cache token by token or through the `generate` of transformers; the size of a cache."""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from streamliner.model.blocks import Blocks


@torch.no_grad()
def fill_cache(blocks: Blocks, ids: Tensor) -> Any:
    """Run one forward over prompts, (texts, tokens), and return its cache; None if the model returns none."""
    output = blocks.model(input_ids=ids.to(blocks.device), use_cache=True, **blocks.last_logits(ids.shape[1]))
    return getattr(output, blocks.cache_name, None)


@torch.no_grad()
def greedy(blocks: Blocks, ids: Tensor, new_tokens: int) -> Tensor:
    """Generate token by token with a cache, with nothing around the model's forward.

    `ids` are prompts, (texts, tokens). Returns the last token of each text, (texts, 1).
    """
    last, keep = ids.to(blocks.device), blocks.last_logits(ids.shape[1])
    cache = None
    for _ in range(new_tokens):
        output = blocks.model(input_ids=last, use_cache=True, **{blocks.cache_name: cache}, **keep)
        cache, keep = getattr(output, blocks.cache_name), {}
        last = output.logits[:, -1:].argmax(-1)
    return last


@torch.no_grad()
def write(blocks: Blocks, prompt: Tensor, new_tokens: int, *, sampled: bool = False) -> Tensor:
    """Continue a prompt, (tokens,), by exactly `new_tokens` tokens, also past an end-of-text token.

    Greedy, or `sampled` at temperature 1; the checkpoint's generation config, with its penalties and limits, is not
    used. Returns prompt and new tokens, (tokens + new_tokens,), on the CPU.
    """
    from transformers import GenerationConfig

    # One that is passed to `generate` would be merged with the model's own.
    with patch.object(blocks.model, "generation_config", GenerationConfig(top_k=0, pad_token_id=0)):
        return _generate(blocks, prompt, max_new_tokens=new_tokens, do_sample=sampled)


@torch.no_grad()
def continue_greedily(blocks: Blocks, prompt: Tensor, new_tokens: int) -> Tensor:
    """Continue a prompt, (tokens,), with the checkpoint's generation config but greedily.

    Returns the new tokens on the CPU: at most `new_tokens`, fewer if the text ends.
    """
    return _generate(blocks, prompt, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)[len(prompt) :]


@torch.no_grad()
def sample(
    blocks: Blocks, prompts: list[list[int]], new_tokens: int, ends: list[int], *, temperature: float, seed: int
) -> list[list[int]]:
    """Continue prompts of different lengths together, padded on the left, until a token of `ends` or for `new_tokens`.

    The checkpoint's generation config is not used; temperature 0 is greedy. Returns the new tokens of each prompt,
    with whatever the batch has after its end.
    """
    from transformers import GenerationConfig

    pad, longest = padding_token(blocks.model.config), max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(each)) + each for each in prompts], device=blocks.device)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=blocks.device)
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    neutral = GenerationConfig(top_k=0, pad_token_id=pad, eos_token_id=ends or None)
    gpus = [blocks.device] if blocks.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), patch.object(blocks.model, "generation_config", neutral):
        torch.manual_seed(seed)
        out = blocks.model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, **how)  # type: ignore[operator]
    found: list[list[int]] = out[:, longest:].tolist()
    return found


def end_tokens(model: Any) -> list[int]:
    """The tokens that end a text, as the generation config or the config says; perhaps none."""
    configs = (model.generation_config, model.config.get_text_config(decoder=True))
    found: Any = next((each.eos_token_id for each in configs if getattr(each, "eos_token_id", None) is not None), [])
    return [found] if isinstance(found, int) else list(found)


def _generate(blocks: Blocks, prompt: Tensor, **settings: Any) -> Tensor:
    ids = prompt[None].to(blocks.device)
    text: Tensor = blocks.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # type: ignore[operator]
    return text[0].cpu()


def padding_token(config: Any) -> int:
    """A token to pad with; `config` is the whole model's."""
    text = config.get_text_config(decoder=True)
    tokens = (getattr(text, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((token for token in tokens if isinstance(token, int)), 0)


def greedy_scores(
    model: Any, ids: Tensor, mask: Tensor, new_tokens: int, *, use_cache: bool, pad: int
) -> tuple[Tensor, list[Tensor]]:
    """Generate `new_tokens` tokens greedily; without a cache each step runs on the whole text.

    Args:
        model: with a `generate`.
        ids: prompts, (texts, tokens), padded on the left with `pad`.
        mask: 1 for tokens of a prompt, 0 for padding, (texts, tokens).

    Returns:
        New tokens, (texts, new_tokens), and for each step the scores, (texts, vocabulary).
    """
    settings = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    settings |= {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "pad_token_id": pad}
    settings |= {"use_cache": use_cache, "return_dict_in_generate": True, "output_scores": True}
    from transformers import GenerationConfig

    # The checkpoint's may stop at strings, load another cache or another model. An encoder's start tokens are in it.
    neutral = model.generation_config if model.config.is_encoder_decoder else GenerationConfig()
    with patch.object(model, "generation_config", neutral):
        output = model.generate(input_ids=ids, attention_mask=mask, **settings)
    return output.sequences[:, -new_tokens:], list(output.scores)


def cache_bytes(cache: Any, tokens: int) -> tuple[float, float] | None:
    """Bytes of keys and values per token in a cache of `tokens` tokens, over all texts in it.

    Returns:
        Bytes per token, and bytes that one further token takes once sliding windows are full. None if the model keeps
        no keys and values.
    """
    layers = getattr(cache, "layers", None) or []
    pairs = [(layer, getattr(layer, name, None)) for layer in layers for name in ("keys", "values")]
    kept = [(layer, tensor) for layer, tensor in pairs if isinstance(tensor, Tensor) and tensor.ndim > 2]
    growing = sum(tensor.nbytes / tensor.shape[-2] for layer, tensor in kept if not layer.is_sliding)
    return (sum(tensor.nbytes for _, tensor in kept) / tokens, growing) if layers else None


def cache_numbers(config: Any) -> int:
    """Numbers that the keys and values of one token take in one block with full attention.

    `config` is that of the stack. An upper bound where blocks attend to a window or share keys.
    """
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * heads * width
