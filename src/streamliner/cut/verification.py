"""Check that a cut model, in memory or in a folder, computes what the dense model does with the blocks bypassed."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from streamliner.cut.config_file import config_difference
from streamliner.cut.structure import Structure
from streamliner.errors import StreamlinerError, UserError, VerificationError, is_out_of_memory
from streamliner.model.blocks import Blocks
from streamliner.model.generate import greedy_scores, padding_token
from streamliner.model.load import UNUSED_ATTRIBUTE, auto_class, folder_for_converted_weights, load_model
from streamliner.model.stack import text_inputs
from streamliner.types import PreTrainedModel

SAMPLE_TOKENS = 256  # whose logits are compared
PROMPT_TOKENS, PADDING, NEW_TOKENS = 12, 4, 8  # of greedy generation

LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference allowed, relative to the largest logit (at least 1).

Cutting changes no arithmetic, but two computations are never promised to be equal to the bit: kernels depend on the
processor, on the number of threads and on how tensors lie in memory.
"""

SCORE_TOLERANCE = 1e-3
"""Largest difference of scores in float32, relative to the largest: with a cache, attention has other shapes."""


@dataclass(frozen=True)
class Reference:
    """What a cut model is compared with; taken from the dense model, which need not stay in memory."""

    sample: Tensor  # token ids, (1, tokens)
    logits: Tensor  # what the cut model must compute for them, (1, tokens, vocabulary)
    # Whether the dense model generates the same with a cache as without: alone, and left-padded in a batch. A few
    # architectures do not; then the cut model need not either.
    cached: bool
    padded: bool
    dtype: torch.dtype  # of the dense model
    device: torch.device
    stack_path: str  # where its blocks are, such as "model.layers"
    source: str = "the dense model with the blocks bypassed"  # what computed `logits`, for messages
    unused: frozenset[str] = frozenset()  # tensors of the dense checkpoint without a place in its model; numbers are N


@dataclass(frozen=True, repr=False)
class Verification:
    """What was compared, and how close it was.

    Attributes:
        max_logit_difference: between the cut model and the reference, over all logits of the sample.
        tolerance: the largest difference allowed.
        cached_generation: greedy generation is the same with a cache as without; None where this does not hold for the
            dense model.
        padded_generation: the same, left-padded in a batch of two.
        tokens: length of the sample.
        dtype: precision of the computation.
    """

    max_logit_difference: float
    tolerance: float
    cached_generation: bool | None
    padded_generation: bool | None
    tokens: int
    dtype: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From what `to_json` wrote, also by an earlier release: `exact` in place of `tolerance`."""
        return cls(**{"tolerance": float("nan")} | {key: item for key, item in value.items() if key != "exact"})

    def __repr__(self) -> str:
        return (
            f"Verification: on {self.tokens} tokens in {self.dtype}, logits within {self.max_logit_difference:.2g} of "
            f"the reference ({self.tolerance:.2g} allowed); {self.generation}"
        )

    @property
    def generation(self) -> str:
        """What was compared of generation, in words."""
        if self.cached_generation and self.padded_generation:
            return "generation with a cache equals generation without, also left-padded"
        if self.cached_generation:
            return "generation with a cache equals generation without (not left-padded, as in the dense model)"
        return "generation not compared: in the dense model it differs with and without a cache"

    def to_json(self) -> dict[str, object]:
        """As a JSON value."""
        return asdict(self)


def sample_tokens(config: Any) -> Tensor:
    """Random token ids to verify on, (1, tokens), always the same. `config` is that of the whole model.

    Special tokens are left out: one that stands for an image, or that ends a text, would change what is computed.
    """
    text = config.get_text_config(decoder=True)
    length = min(SAMPLE_TOKENS, (getattr(text, "max_position_embeddings", None) or SAMPLE_TOKENS) // 2)
    fields = [*vars(config).items(), *vars(text).items()]
    ids = [value for name, value in fields if name.endswith(("token_id", "token_index"))]
    special = {token for value in ids for token in (value if isinstance(value, (list, tuple)) else [value])}
    low = min(8, text.vocab_size // 2)
    ordinary = torch.tensor([token for token in range(low, text.vocab_size) if token not in special])
    return ordinary[torch.randint(len(ordinary), (1, length), generator=torch.Generator().manual_seed(0))]


def reference_outputs(blocks: Blocks, removed: tuple[int, ...], sample: Tensor) -> Reference:
    """Run the dense model on `sample`, (1, tokens): its logits with `removed` bypassed, and its own generation."""
    with torch.inference_mode(), blocks.bypass(removed):
        logits: Tensor = blocks.forward(sample).logits
    cached, padded = _same_generation(blocks.model, sample.to(blocks.device), blocks.dtype)
    unused = frozenset(map(_without_numbers, getattr(blocks.model, UNUSED_ATTRIBUTE, ())))
    return Reference(sample, logits.cpu(), cached, padded, blocks.dtype, blocks.device, blocks.path, unused=unused)


def _without_numbers(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def verify_model(model: PreTrainedModel, reference: Reference) -> Verification:
    """Compare a model in memory, in evaluation mode, with the reference.

    A VerificationError if the logits differ, or if generation with a cache differs from generation without.
    """
    sample = reference.sample.to(model.device)
    with torch.inference_mode():
        logits = model(**text_inputs(model, sample), use_cache=False).logits.float().cpu()
    expected = reference.logits.float()
    if logits.shape != expected.shape:
        shapes = f"{tuple(logits.shape)}, not {tuple(expected.shape)}"
        raise VerificationError(f"The logits of the cut model have the shape {shapes} as those of {reference.source}.")
    difference = (logits - expected).abs().max().item()
    tolerance = _tolerance(reference.dtype, expected.abs().max().item())
    if not difference <= tolerance:  # also where it is not a number
        found = f"differ by {difference:.3g} from those of {reference.source}; at most {tolerance:.3g} is allowed"
        raise VerificationError(f"The logits of the cut model {found}.")
    cached, padded = _same_generation(model, sample, reference.dtype)
    for agreed, agreed_before, how in ((cached, reference.cached, ""), (padded, reference.padded, "left-padded ")):
        if agreed_before and not agreed:
            raise VerificationError(f"The cut model's {how}generation with a cache differs from that without.")
    generation = (cached if reference.cached else None, padded if reference.padded else None)
    dtype = str(reference.dtype).removeprefix("torch.")
    return Verification(difference, tolerance, *generation, sample.shape[1], dtype)


def verify_checkpoint(
    folder: Path, reference: Reference, *, trust_remote_code: bool = False, device_map: Any = None
) -> Verification:
    """Reload the checkpoint in `folder` as any user of transformers would, and compare it with the reference.

    `device_map` says where parts of the model go, for one that a single device cannot hold. A VerificationError if it
    does not load, if tensors are missing or not used, or as for `verify_model`.
    """
    from transformers import AutoConfig

    trusted: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    placed = {"device_map": device_map, "offload_folder": folder_for_converted_weights()} if device_map else {}
    try:
        config = AutoConfig.from_pretrained(folder, **trusted)
        # Quantised weights have dtypes of their own.
        dtype = "auto" if getattr(config, "quantization_config", None) else reference.dtype
        model, info = auto_class(config).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **trusted, **placed
        )
    except StreamlinerError:
        raise
    except Exception as error:  # transformers raises errors of many types
        if is_out_of_memory(error):
            raise
        raise VerificationError(f"transformers does not load the written checkpoint: {str(error).strip()}") from error
    # Tensors that belong to another class, such as an encoder's, are copied as they were. In a block there are none.
    block = re.compile(rf"(^|\.){re.escape('.'.join(reference.stack_path.split('.')[-2:]))}\.\d+\.")
    extra = (str(name) for name in info["unexpected_keys"] if block.search(str(name)))
    unexpected = [name for name in extra if _without_numbers(name) not in reference.unused]
    missing, mismatched = info["missing_keys"], info["mismatched_keys"]
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched)):
        if names:
            raise VerificationError(f"The written checkpoint has {kind} keys: {min(map(str, names))}.")
    return verify_model(model.eval() if device_map else model.eval().to(reference.device), reference)


def verify_gguf(
    file: Path,
    reference: Reference,
    structure: Structure,
    removed: tuple[int, ...],
    *,
    spread: bool = False,
    healed: Mapping[str, Tensor] | None = None,
) -> Verification:
    """Load a cut GGUF file with transformers, which dequantises it, and compare it with the reference.

    `structure` is that of the dense model, `spread` whether all GPUs hold the model, `healed` tensors that it must have
    exactly, by name. A VerificationError if the file does not load, if its config is not that of the cut model, if one
    of these tensors differs, or as for `verify_model`.
    """
    dtype, device = str(reference.dtype).removeprefix("torch."), "auto" if spread else str(reference.device)
    try:
        model = load_model(file, dtype=dtype, device=device)
    except UserError as error:
        raise VerificationError(f"transformers does not load the written file: {error.args[0]}") from error
    # Which blocks attend to a window shows in the logits of texts longer than that.
    if difference := config_difference(model.config, structure, removed):
        raise VerificationError(f"The written file would be read with {difference}.")
    found = model.state_dict()
    for name, tensor in (healed or {}).items():
        if not torch.equal(found[name].cpu(), tensor.cpu()):
            raise VerificationError(f"The healed tensor {name} is read from the written file as another one.")
    return verify_model(model, reference)


def _same_generation(model: Any, sample: Tensor, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether greedy generation is the same with a cache as without: of a prompt, and left-padded in a batch of two.

    The prompt is the beginning of `sample`, (1, tokens), on the device of the model; `dtype` is the dense model's.
    """
    if not hasattr(model, "generate"):
        return False, False
    prompt, pad = sample[:, :PROMPT_TOKENS], padding_token(model.config)
    padded = torch.cat([torch.full_like(prompt[:, :PADDING], pad), prompt[:, PADDING:]], dim=1)
    mask = torch.ones_like(prompt).repeat(2, 1)
    mask[1, :PADDING] = 0
    alone = _same_with_cache(model, prompt, mask[:1], pad, dtype)
    return alone, _same_with_cache(model, torch.cat([prompt, padded]), mask, pad, dtype)


def _same_with_cache(model: Any, ids: Tensor, mask: Tensor, pad: int, dtype: torch.dtype) -> bool:
    """Whether the tokens are the same, up to the first tie that rounding broke, and in float32 the scores too.

    In half precision, rounding hides a small fault in the scores.
    """
    try:
        tokens, scores = greedy_scores(model, ids, mask, NEW_TOKENS, use_cache=True, pad=pad)
        other_tokens, other_scores = greedy_scores(model, ids, mask, NEW_TOKENS, use_cache=False, pad=pad)
        for step in range(NEW_TOKENS):
            score, other_score = scores[step], other_scores[step]
            finite = score.isfinite() & other_score.isfinite()
            largest = other_score[finite].abs().max().item()
            difference = (score - other_score)[finite].abs().max().item()
            if model.dtype == torch.float32 and not difference <= SCORE_TOLERANCE * largest:
                return False
            token, other_token = tokens[:, step, None], other_tokens[:, step, None]
            if not torch.equal(token, other_token):
                # Two tokens with almost the same score are a tie. After it the texts may differ.
                gap = (score.gather(1, token) - score.gather(1, other_token)).abs().max().item()
                return gap <= 4 * _tolerance(dtype, largest)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # some models cannot generate at all, or not left-padded
    return True


def _tolerance(dtype: torch.dtype, largest: float) -> float:
    """The difference of logits that is allowed where the largest one is `largest`."""
    return LOGIT_TOLERANCE.get(dtype, LOGIT_TOLERANCE[torch.float32]) * max(largest, 1.0)
