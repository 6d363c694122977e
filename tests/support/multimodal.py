"""Tiny random vision- and audio-language models, built from nothing but their configs.

A wrapper is a model whose config has the config of a language model next to that of an image or audio tower. The text
stack has `BLOCKS` blocks and what is special in the architecture; the tower has at most two layers. The inputs are made
without a processor: random pixels or mel bins, and as many placeholder tokens as the tower's output needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)

BLOCKS = 6
VOCABULARY = 160
PLACEHOLDER, START, END, OTHER = 150, 151, 152, 153
"""Tokens of an image (or audio): its content, its start, its end, and one for what no input here has, such as video."""

SIDE, PATCH = 16, 4
PATCHES = (SIDE // PATCH) ** 2
MELS, FRAMES = 8, 16


def mrope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary parameters that divide a head's frequencies among time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}}


TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
HEADS = TEXT | {"head_dim": 8}
"""For types whose head size is independent of the width."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": 16}
AUDIO: dict[str, Any] = {
    "num_mel_bins": MELS,
    "max_source_positions": FRAMES // 2,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 16,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
HYBRID: dict[str, Any] = TEXT | {
    "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    **mrope(2, 1, 1, partial_rotary_factor=0.5),
}
"""Linear attention in two of three blocks, in another order than the default."""
QWEN3_TOWER = QWEN_TOWER | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": PATCHES,
}
QWEN_TOKENS = {
    "image_token_id": PLACEHOLDER,
    "video_token_id": OTHER,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
GLM_TOWER = QWEN_TOWER | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "out_hidden_size": TEXT["hidden_size"],
    "image_size": SIDE,
}
GLM_TOKENS = {
    "image_token_id": PLACEHOLDER,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_token_id": OTHER,
    "video_start_token_id": OTHER + 2,
    "video_end_token_id": OTHER + 3,
}

Features = Callable[[torch.Generator], dict[str, Tensor]]


def pixels(*shape: int, **more: Any) -> Features:
    """Random pixels, by default of one picture; `more` are further inputs as lists."""
    shape = shape or (1, 3, SIDE, SIDE)
    extra = {name: torch.tensor(values) for name, values in more.items()}
    return lambda generator: {"pixel_values": torch.randn(shape, generator=generator), **extra}


def flat_patches() -> Features:
    """An image as the towers of Qwen take it: a row for each patch, with two frames."""
    return pixels(PATCHES, 3 * 2 * PATCH**2, image_grid_thw=[[1, SIDE // PATCH, SIDE // PATCH]])


def placed_patches() -> Features:
    """An image as Gemma 4 takes it: a row for each patch, and its x and y."""
    places = [[x, y] for y in range(SIDE // PATCH) for x in range(SIDE // PATCH)]
    return pixels(1, PATCHES, 3 * PATCH**2, image_position_ids=[places])


def mels(**more: Any) -> Features:
    """Random mel bins."""
    extra = {name: torch.tensor(values) for name, values in more.items()}
    return lambda generator: {"input_features": torch.randn(1, MELS, FRAMES, generator=generator), **extra}


@dataclass(frozen=True)
class Wrapper:
    """How to build one type and an image for it."""

    fields: dict[str, Any]
    """Arguments of the config class."""
    placeholders: int
    """How many tokens stand for the image (or audio) of `features`; may be 0."""
    features: Features = field(default_factory=pixels)
    marks: str | None = None
    """The input that marks the tokens of an image, if the model takes one."""
    auto: Any = AutoModelForImageTextToText
    blank: Callable[[Tensor], dict[str, Tensor]] | None = None
    """Token ids of a text -> the inputs for an empty image, for the few types whose `forward` needs one."""


WRAPPERS: dict[str, Wrapper] = {
    # Local and global blocks in another order than the default, so that the list is needed.
    "gemma3": Wrapper(
        {
            "text_config": HEADS
            | {
                "query_pre_attn_scalar": 8,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            },
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": PLACEHOLDER,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
        placeholders=4,
        marks="token_type_ids",
    ),
    # Token embeddings of each block in one matrix, another head size in the global blocks, and keys and values that the
    # last two blocks take from earlier ones.
    "gemma4": Wrapper(
        {
            "text_config": HEADS
            | {
                "global_head_dim": 16,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 3,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": VOCABULARY,
                "hidden_size_per_layer_input": 8,
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": PATCH,
                "pooling_kernel_size": 2,
                "position_embedding_size": 16,
            },
            "audio_config": None,
            "image_token_id": PLACEHOLDER,
            "boi_token_id": START,
            "eoi_token_id": END,
            "video_token_id": OTHER,
            # Any tokens of the vocabulary: no input here has audio.
            "audio_token_id": OTHER + 2,
            "boa_token_id": OTHER + 3,
            "eoa_token_index": OTHER + 4,
        },
        placeholders=4,
        features=placed_patches(),
    ),
    # Some blocks without rotary positions, and some with experts.
    "llama4": Wrapper(
        {
            "text_config": HEADS
            | {
                "intermediate_size": 32,
                "intermediate_size_mlp": 48,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
                "no_rope_layers": [1, 1, 0, 1, 1, 0],
                "moe_layers": [1, 3, 4],
                "attention_chunk_size": 8,
            },
            "vision_config": TOWER
            | {"intermediate_size": 64, "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16},
            "image_token_index": PLACEHOLDER,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
        placeholders=PATCHES // 4,
    ),
    "qwen2_vl": Wrapper(
        {
            "text_config": TEXT
            | mrope(2, 1, 1)
            | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            "vision_config": QWEN_TOWER | {"embed_dim": 16, "hidden_size": TEXT["hidden_size"], "mlp_ratio": 2},
            **QWEN_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "qwen2_5_vl": Wrapper(
        {
            "text_config": TEXT
            | mrope(2, 1, 1)
            | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            "vision_config": QWEN_TOWER
            | {
                "hidden_size": 16,
                "intermediate_size": 32,
                "out_hidden_size": TEXT["hidden_size"],
                "window_size": 2 * PATCH,
                "fullatt_block_indexes": [1],
            },
            **QWEN_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    # Both layers of the tower feed the text model: after its blocks 0 and 1, image features are added.
    "qwen3_vl": Wrapper(
        {
            "text_config": HEADS | mrope(2, 1, 1),
            "vision_config": QWEN3_TOWER | {"deepstack_visual_indexes": [0, 1]},
            **QWEN_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "qwen3_vl_moe": Wrapper(
        {
            "text_config": HEADS | EXPERTS | mrope(2, 1, 1) | {"mlp_only_layers": [0, 4]},
            "vision_config": QWEN3_TOWER | {"deepstack_visual_indexes": [0, 1]},
            **QWEN_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "qwen3_5": Wrapper(
        {"text_config": HYBRID, "vision_config": QWEN3_TOWER, **QWEN_TOKENS},
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "qwen3_5_moe": Wrapper(
        {
            "text_config": HYBRID | EXPERTS | {"shared_expert_intermediate_size": 16},
            "vision_config": QWEN3_TOWER,
            **QWEN_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    # Image features after the first blocks as in Qwen 3, in a stack with local blocks.
    "cohere_compass": Wrapper(
        {
            "text_config": TEXT
            | {
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
                "rope_parameters": {"sliding_attention": mrope(2, 1, 1)["rope_parameters"], "full_attention": None},
            },
            "vision_config": QWEN3_TOWER | {"deepstack_visual_indexes": [0, 1]},
            **QWEN_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "glm4v": Wrapper(
        {
            "text_config": TEXT
            | mrope(2, 1, 1, partial_rotary_factor=0.5)
            | {"num_attention_heads": 2, "num_key_value_heads": 1},
            "vision_config": GLM_TOWER,
            **GLM_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "glm4v_moe": Wrapper(
        {
            "text_config": TEXT
            | mrope(2, 1, 1, partial_rotary_factor=0.5)
            | {
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "first_k_dense_replace": 2,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
            },
            "vision_config": GLM_TOWER,
            **GLM_TOKENS,
        },
        placeholders=PATCHES // 4,
        features=flat_patches(),
        marks="mm_token_type_ids",
    ),
    "mistral3": Wrapper(
        {
            "text_config": HEADS | {"model_type": "mistral", "sliding_window": 8},
            "vision_config": TOWER | {"model_type": "pixtral"},
            "image_token_index": PLACEHOLDER,
            "spatial_merge_size": 2,
        },
        placeholders=PATCHES // 4,
        features=pixels(image_sizes=[[SIDE, SIDE]]),
    ),
    "llava": Wrapper(
        {
            "text_config": HEADS | {"model_type": "llama"},
            "vision_config": CLIP,
            "image_token_index": PLACEHOLDER,
            "image_seq_length": PATCHES,
        },
        placeholders=PATCHES,
    ),
    # The picture as a whole and in two tiles side by side, with a token at the end of each row.
    "llava_next": Wrapper(
        {
            "text_config": HEADS | {"model_type": "mistral", "sliding_window": 8},
            "vision_config": CLIP,
            "image_token_index": PLACEHOLDER,
            "image_grid_pinpoints": [[SIDE, 2 * SIDE]],
        },
        placeholders=PATCHES + (SIDE // PATCH) * (2 * SIDE // PATCH + 1),
        features=pixels(1, 3, 3, SIDE, SIDE, image_sizes=[[SIDE, 2 * SIDE]]),
    ),
    "llava_onevision": Wrapper(
        {
            "text_config": TEXT
            | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            "vision_config": SIGLIP,
            "image_token_index": PLACEHOLDER,
            "video_token_index": OTHER,
            "image_grid_pinpoints": [[SIDE, 2 * SIDE]],
        },
        placeholders=PATCHES + (SIDE // PATCH) * (2 * SIDE // PATCH + 1),
        features=pixels(1, 3, 3, SIDE, SIDE, image_sizes=[[SIDE, 2 * SIDE]]),
    ),
    "vipllava": Wrapper(
        {
            "text_config": HEADS | {"model_type": "llama"},
            "vision_config": CLIP,
            "image_token_index": PLACEHOLDER,
            "vision_feature_layer": [-1, -2],
        },
        placeholders=PATCHES,
    ),
    "internvl": Wrapper(
        {
            "text_config": TEXT
            | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            "vision_config": TOWER | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            "image_token_id": PLACEHOLDER,
            "image_seq_length": PATCHES // 4,
        },
        placeholders=PATCHES // 4,
    ),
    # Short convolutions instead of attention in two of three blocks.
    "lfm2_vl": Wrapper(
        {
            "text_config": TEXT
            | {
                "model_type": "lfm2",
                "block_auto_adjust_ff_dim": False,
                "layer_types": ["conv", "conv", "full_attention"] * 2,
            },
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": PATCH,
                "num_patches": PATCHES,
                "vision_use_head": False,
            },
            "image_token_id": PLACEHOLDER,
            "projector_hidden_size": 32,
        },
        placeholders=PATCHES // 4,
        features=pixels(
            1,
            PATCHES,
            3 * PATCH**2,
            spatial_shapes=[[SIDE // PATCH, SIDE // PATCH]],
            pixel_attention_mask=[[1] * PATCHES],
        ),
    ),
    "idefics2": Wrapper(
        {
            "text_config": HEADS | {"model_type": "mistral", "sliding_window": 8},
            "vision_config": TOWER,
            "perceiver_config": {
                "hidden_size": TEXT["hidden_size"],
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
            },
            "image_token_id": PLACEHOLDER,
        },
        placeholders=4,
        features=pixels(1, 1, 3, SIDE, SIDE),
    ),
    "idefics3": Wrapper(
        {
            "text_config": HEADS | {"model_type": "llama"},
            "vision_config": TOWER,
            "image_token_id": PLACEHOLDER,
            "scale_factor": 2,
        },
        placeholders=PATCHES // 4,
        features=pixels(1, 1, 3, SIDE, SIDE),
    ),
    "smolvlm": Wrapper(
        {
            "text_config": HEADS | {"model_type": "llama"},
            "vision_config": TOWER,
            "image_token_id": PLACEHOLDER,
            "scale_factor": 2,
        },
        placeholders=PATCHES // 4,
        features=pixels(1, 1, 3, SIDE, SIDE),
    ),
    "paligemma": Wrapper(
        {
            "text_config": HEADS | {"model_type": "gemma"},
            "vision_config": SIGLIP,
            "image_token_index": PLACEHOLDER,
            "projection_dim": TEXT["hidden_size"],
            "hidden_size": TEXT["hidden_size"],
            "vocab_size": VOCABULARY,
        },
        placeholders=PATCHES,
    ),
    "aya_vision": Wrapper(
        {
            "text_config": TEXT
            | {
                "model_type": "cohere2",
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            },
            "vision_config": SIGLIP,
            "image_token_index": PLACEHOLDER,
        },
        placeholders=PATCHES // 4,
    ),
    "cohere2_vision": Wrapper(
        {
            "text_config": TEXT
            | {
                "model_type": "cohere2",
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            },
            "vision_config": SIGLIP,
            "image_token_id": PLACEHOLDER,
            "alignment_intermediate_size": 32,
        },
        placeholders=PATCHES // 4,
    ),
    "got_ocr2": Wrapper(
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": {
                "hidden_size": 16,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 4 * SIDE,
                "patch_size": PATCH,
                "window_size": 8,
                "global_attn_indexes": [1],
                "mlp_dim": 32,
            },
            "image_token_index": PLACEHOLDER,
            "image_seq_length": PATCHES,
        },
        # Two convolutions of stride 2 make 4 x 4 of the 16 x 16 patches.
        placeholders=PATCHES,
        features=pixels(1, 3, 4 * SIDE, 4 * SIDE),
    ),
    "deepseek_vl": Wrapper(
        {"text_config": HEADS | {"model_type": "llama"}, "vision_config": SIGLIP, "image_token_id": PLACEHOLDER},
        placeholders=PATCHES,
    ),
    "kosmos-2": Wrapper(
        {
            "text_config": {
                "vocab_size": VOCABULARY,
                "embed_dim": 32,
                "ffn_dim": 48,
                "layers": BLOCKS,
                "attention_heads": 4,
                "max_position_embeddings": 128,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            "vision_config": TOWER,
            "latent_query_num": 4,
        },
        placeholders=4,
        marks="image_embeds_position_mask",
        blank=lambda ids: {"image_embeds": torch.zeros(1, 0, 32), "image_embeds_position_mask": torch.zeros_like(ids)},
    ),
    "blip-2": Wrapper(
        {
            "text_config": {
                "model_type": "opt",
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "ffn_dim": 48,
                "word_embed_proj_dim": 32,
                "num_hidden_layers": BLOCKS,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 2,
            },
            "vision_config": TOWER,
            "qformer_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "encoder_hidden_size": 16,
                "max_position_embeddings": 32,
            },
            "num_query_tokens": 4,
            "image_text_hidden_size": 16,
            "image_token_index": PLACEHOLDER,
        },
        placeholders=4,
        blank=lambda ids: {"pixel_values": torch.zeros(1, 3, SIDE, SIDE)},
    ),
    # Image features are added before the blocks that the config names, first to last.
    "granite4_vision": Wrapper(
        {
            "text_config": TEXT,
            # The query transformer has a head for each 64 of the tower's width.
            "vision_config": SIGLIP | {"hidden_size": 64},
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "vocab_size": VOCABULARY,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "cross_attention_frequency": 1,
                "max_position_embeddings": 32,
                "use_qformer_text_input": False,
            },
            "image_token_index": PLACEHOLDER,
            "image_grid_pinpoints": [[SIDE, SIDE]],
            "vision_feature_select_strategy": "full",
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0], [-2, 2]],
            "spatial_target_layers": [1, 3, 4, 5],
        },
        # The whole picture and one tile of it, 2 x 2 each, with a token at the end of each row of the tile.
        placeholders=4 + 2 * 3,
        features=pixels(1, 2, 3, SIDE, SIDE, image_sizes=[[SIDE, SIDE]]),
    ),
    # Cross-attention to the image before every second block, in a separate list of modules.
    "idefics": Wrapper(
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "cross_layer_interval": 2,
            "vision_config": {
                "embed_dim": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": SIDE,
                "patch_size": PATCH,
            },
        },
        placeholders=0,
        features=pixels(1, 1, 3, SIDE, SIDE),
        marks="image_attention_mask",
        blank=lambda ids: {
            "pixel_values": torch.zeros(1, 1, 3, SIDE, SIDE),
            "image_attention_mask": torch.zeros(*ids.shape, 1, dtype=torch.long),
        },
    ),
    # Two of the blocks are cross-attention to the image; a text without an image skips them.
    "mllama": Wrapper(
        {
            "text_config": TEXT | {"cross_attention_layers": [1, 4]},
            "vision_config": TOWER
            | {
                "num_global_layers": 1,
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
                "intermediate_layers_indices": [0],
                "vision_output_dim": 32,
            },
            "image_token_index": PLACEHOLDER,
        },
        placeholders=1,
        features=pixels(1, 1, 1, 3, SIDE, SIDE, aspect_ratio_ids=[[1]], aspect_ratio_mask=[[[1]]]),
        marks="cross_attention_mask",
    ),
    "qwen2_audio": Wrapper(
        {
            "text_config": TEXT
            | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            "audio_config": AUDIO | {"model_type": "qwen2_audio_encoder"},
            "audio_token_index": PLACEHOLDER,
        },
        # A convolution of stride 2 and a mean of neighbours halve the frames twice.
        placeholders=FRAMES // 4,
        features=mels(feature_attention_mask=[[1] * FRAMES]),
        auto=AutoModelForMultimodalLM,
    ),
    "voxtral": Wrapper(
        {
            "text_config": HEADS | {"model_type": "llama"},
            "audio_config": {
                "model_type": "voxtral_encoder",
                "vocab_size": VOCABULARY,
                "hidden_size": 16,
                # The projector takes four frames at once: as wide as the tower's inner layer.
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_mel_bins": MELS,
                "max_source_positions": FRAMES // 2,
            },
            "audio_token_id": PLACEHOLDER,
        },
        placeholders=FRAMES // 8,
        features=mels(),
        auto=AutoModelForMultimodalLM,
    ),
}


NEEDS_IMAGE = [name for name, wrapper in WRAPPERS.items() if wrapper.blank is not None]
"""Types that do not run on token ids alone."""


def wrapper_config(name: str) -> PretrainedConfig:
    """A new config of `name`. The fields are copied, as config classes change the dictionaries that they get."""
    return CONFIG_MAPPING[name](**_copied(WRAPPERS[name].fields))


def make_wrapper(name: str) -> PreTrainedModel:
    """A tiny model of `name` with random weights, float32, in evaluation mode."""
    torch.manual_seed(0)
    model = WRAPPERS[name].auto.from_config(wrapper_config(name)).float()
    # Larger than the usual initialisation, so that a wrong block or image shows in the logits.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.15)
        elif parameter.numel() == 1:  # a gate, which starts closed: the image would have no effect
            parameter.data.fill_(0.5)
    return model.eval().requires_grad_(False)


def text_inputs(name: str, length: int = 24, seed: int = 0) -> dict[str, Tensor]:
    """Text alone: token ids, and an empty image for the few types that do not run without one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, PLACEHOLDER - 2, (1, length), generator=generator)
    blank = WRAPPERS[name].blank
    return {"input_ids": ids} | ({} if blank is None else blank(ids))


def image_inputs(name: str, model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Text around one image (or audio): the arguments of the model's `forward`, on its device.

    Another `seed` makes another image in the same text.
    """
    wrapper = WRAPPERS[name]
    text = text_inputs(name)["input_ids"]
    content = torch.full((1, wrapper.placeholders), PLACEHOLDER)
    ids = torch.cat([text[:, :6], torch.tensor([[START]]), content, torch.tensor([[END]]), text[:, 6:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= wrapper.features(torch.Generator().manual_seed(seed))
    if wrapper.marks == "cross_attention_mask":  # by token, image and tile
        inputs[wrapper.marks] = torch.ones(*ids.shape, 1, 1, dtype=torch.long)
    elif wrapper.marks == "image_attention_mask":  # by token and image
        inputs[wrapper.marks] = torch.ones(*ids.shape, 1, dtype=torch.long)
    elif wrapper.marks is not None:
        inputs[wrapper.marks] = (ids == PLACEHOLDER).long()
    return {key: value.to(model.device) for key, value in inputs.items()}


PROCESSED = ["gemma3", "llava"]
"""Types whose processor can be built from a tiny vocabulary and an image processor that needs only Pillow."""


def processor_inputs(name: str) -> dict[str, Tensor]:
    """What the processor of the type returns for a line of text and a picture. Needs Pillow."""
    from PIL import Image  # optional: the other functions do not need it

    words = ["<bos>", "<eos>", "<pad>", "<unk>", *(f"word{index}" for index in range(4, PLACEHOLDER))]
    words += ["<image>", "<start>", "<end>"]
    vocabulary = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "boi_token": "<start>", "eoi_token": "<end>"},
    )
    size = {"height": SIDE, "width": SIDE}
    if name == "llava":
        tower = transformers.CLIPImageProcessorPil(size=size, crop_size=size)
        # The strategy drops the tower's class token, which is counted as additional.
        processor = transformers.LlavaProcessor(
            tower, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
        marker = "<image>"
    else:
        tower = transformers.Gemma3ImageProcessorPil(size=size)
        length = WRAPPERS[name].placeholders
        processor = transformers.Gemma3Processor(tower, tokenizer, image_seq_length=length)
        marker = "<start>"
    picture = Image.frombytes("RGB", (SIDE, SIDE), bytes(7 * index % 256 for index in range(3 * SIDE**2)))
    return dict(processor(text=f"word20 word21 {marker} word22 word23", images=picture, return_tensors="pt"))


def _copied(value: Any) -> Any:
    """A copy of nested dictionaries and lists."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
