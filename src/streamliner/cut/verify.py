"""Prove that a cut checkpoint is the dense model with the blocks bypassed."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.errors import (
    StreamlinerError,
    VerificationError,
)
from streamliner.model.blocks import Blocks
from streamliner.model.load import auto_class, folder_for_converted_weights
from streamliner.model.stack import text_inputs

SAMPLE_TOKENS = 256


def sample_tokens(config: Any) -> torch.Tensor:
    """Token ids to verify on, (1, tokens): seeded, of ordinary words. `config` is the whole model's."""
    text = config.get_text_config(decoder=True)
    length = min(SAMPLE_TOKENS, (getattr(text, "max_position_embeddings", None) or SAMPLE_TOKENS) // 2)
    # A token that stands for an image, or ends a text, would ask for what is not there.
    parts = [vars(part) for part in (config, text)]
    special = {value for part in parts for key, value in part.items() if key.endswith(("token_id", "token_index"))}
    low = min(8, text.vocab_size // 2)
    ordinary = torch.tensor([token for token in range(low, text.vocab_size) if token not in special])
    generator = torch.Generator().manual_seed(0)
    return ordinary[torch.randint(len(ordinary), (1, length), generator=generator)]


NEW_TOKENS = 8


PAD_NAMES = ("pad_token_id", "eos_token_id")


LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference allowed, relative to the largest logit. Rebuilding changes no arithmetic, so the difference is
expected to be exactly zero; the tolerance is for kernels that choose by memory layout."""


SCORE_TOLERANCE = 1e-3
"""For logits of generation with a cache against without, in float32: attention then runs in other shapes."""


@dataclass(frozen=True)
class Expectation:
    """What the dense model does, taken before it makes room for the cut one (`expect`).

    Attributes:
        sample: token ids, (1, tokens).
        logits: with the blocks bypassed, (1, tokens, words): what the cut model must give.
        cached, padded: whether greedy generation of the dense model itself is the same with a cache as without, alone
            and left-padded in a batch. A few architectures disagree with themselves; the cut model need not be better.
        dtype, device: of the dense model.
        stack_path: where its blocks are, such as "model.layers".
        of: what `logits` are of, for messages.
    """

    sample: Tensor
    logits: Tensor
    cached: bool
    padded: bool
    dtype: torch.dtype
    device: torch.device
    stack_path: str
    of: str = "the dense model with the blocks bypassed"


@dataclass(frozen=True)
class Verification:
    """What was checked of a cut checkpoint.

    Attributes:
        max_logit_difference: between the reloaded model and bypass on the dense model, over all logits of the sample.
        exact: that difference is 0.
        cached_generation: greedy generation with a cache gave the tokens of generation without; None where the dense
            model does not do so either.
        padded_generation: the same, left-padded in a batch of two.
        tokens: length of the sample.
        dtype: in which it was computed.
    """

    max_logit_difference: float
    exact: bool
    cached_generation: bool | None
    padded_generation: bool | None
    tokens: int
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)


def expect(blocks: Blocks, removed: tuple[int, ...], sample: Tensor) -> Expectation:
    """Run the dense model: logits with `removed` bypassed, generation as it is. `sample` is (1, tokens)."""
    with torch.inference_mode(), blocks.bypass(removed):
        logits: Tensor = blocks.forward(sample).logits
    cached, padded = _generations_agree(blocks.model, sample.to(blocks.device))
    return Expectation(sample, logits.cpu(), cached, padded, blocks.dtype, blocks.device, blocks.path)


def verify(
    folder: Path, expected: Expectation, *, trust_remote_code: bool = False, device_map: Any = None
) -> Verification:
    """Reload the checkpoint in `folder` as any user of transformers would, and compare.

    Args:
        folder: the cut checkpoint.
        expected: what the dense model did (`expect`).
        trust_remote_code: run the checkpoint's own Python code.
        device_map: where parts of the model go, for one that one device cannot hold.

    Raises:
        VerificationError: keys are missing or too many, or logits or generations differ.
    """
    from transformers import AutoConfig

    trusted: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    placed = {"device_map": device_map, "offload_folder": folder_for_converted_weights()} if device_map else {}
    try:
        config = AutoConfig.from_pretrained(folder, **trusted)
        # Quantised weights have dtypes of their own.
        dtype = "auto" if getattr(config, "quantization_config", None) else expected.dtype
        model, info = auto_class(config).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **trusted, **placed
        )
    except StreamlinerError:
        raise
    except Exception as error:  # whatever transformers raises: the checkpoint is not one that it loads
        raise VerificationError(f"transformers does not load the written checkpoint: {str(error).strip()}") from error
    # Tensors that are not this class's, such as an encoder's, are copied as they were; in a block there can be none.
    block = re.compile(rf"(^|\.){re.escape('.'.join(expected.stack_path.split('.')[-2:]))}\.\d+\.")
    strange = [name for name in info["unexpected_keys"] if block.search(name)]
    missing, mismatched = info["missing_keys"], info["mismatched_keys"]
    for kind, names in (("missing", missing), ("unexpected", strange), ("mismatched", mismatched)):
        if names:
            raise VerificationError(f"The written checkpoint has {kind} keys: {min(map(str, names))}.")
    model = model.eval() if device_map else model.eval().to(expected.device)
    sample = expected.sample.to(model.device)
    with torch.inference_mode():
        logits = model(**text_inputs(model, sample), use_cache=False).logits.cpu()
    difference = (logits.float() - expected.logits.float()).abs().max().item()
    if not difference <= LOGIT_TOLERANCE.get(expected.dtype, 1e-5) * max(
        expected.logits.float().abs().max().item(), 1.0
    ):
        raise VerificationError(
            f"The logits of the written checkpoint differ by {difference:.3g} from those of {expected.of}."
        )
    cached, padded = _generations_agree(model, sample)
    if expected.cached and not cached:
        raise VerificationError("The written model generates other tokens with a cache than without.")
    if expected.padded and not padded:
        raise VerificationError(
            "Left-padded in a batch, the written model generates other tokens with a cache than without."
        )
    return Verification(
        max_logit_difference=difference,
        exact=difference == 0,
        cached_generation=cached if expected.cached else None,
        padded_generation=padded if expected.padded else None,
        tokens=sample.shape[1],
        dtype=str(expected.dtype).removeprefix("torch."),
    )


def _generations_agree(model: nn.Module, sample: Tensor) -> tuple[bool, bool]:
    """Whether greedy generation is the same with and without a cache: alone, and left-padded in a batch of two."""
    single = sample[:, : min(12, sample.shape[1])]
    if not hasattr(model, "generate"):
        return False, False
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    pad = next((i for i in (getattr(config, name, None) for name in PAD_NAMES) if isinstance(i, int)), 0)
    shorter = torch.cat([torch.full_like(single[:, :4], pad), single[:, 4:]], dim=1)
    mask = torch.ones_like(single).repeat(2, 1)
    mask[1, :4] = 0
    batch = torch.cat([single, shorter])
    return (
        _same_with_cache(model, single, torch.ones_like(single), pad),
        _same_with_cache(model, batch, mask, pad),
    )


def _same_with_cache(model: nn.Module, ids: Tensor, mask: Tensor, pad: int) -> bool:
    try:
        return _compare_with_cache(model, ids, mask, pad)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError):
        return False  # some models cannot generate at all, or not so; what counts is whether the dense one could


def _compare_with_cache(model: nn.Module, ids: Tensor, mask: Tensor, pad: int) -> bool:
    outputs = [
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            use_cache=use_cache,
            do_sample=False,
            num_beams=1,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=pad,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for use_cache in (True, False)
    ]
    with_cache, without = outputs
    exact = model.dtype == torch.float32  # in half precision rounding hides a small fault in the scores
    for step, (a, b) in enumerate(zip(with_cache.scores, without.scores, strict=True)):
        new_a, new_b = (o.sequences[:, step - NEW_TOKENS] for o in outputs)
        finite = a.isfinite() & b.isfinite()
        if exact and (a - b)[finite].abs().max() > SCORE_TOLERANCE * b[finite].abs().max():
            return False
        if not torch.equal(new_a, new_b):
            # A tie that rounding breaks is no disagreement; after it the texts part for good reason.
            rows = (new_a != new_b).nonzero()[:, 0]
            gap = (a.gather(1, new_a[:, None]) - a.gather(1, new_b[:, None]))[rows].abs().max().item()
            scale = b.masked_fill(b.isinf(), 0).abs().max().item()
            return bool(gap <= 4 * LOGIT_TOLERANCE.get(model.dtype, 1e-5) * max(scale, 1.0))  # type: ignore[call-overload, arg-type]
    return True
