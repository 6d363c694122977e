"""Load a model's config, its tokenizer, or its weights."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from streamliner.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamliner.errors import first_line
from streamliner.model.devices import best_device
from streamliner.model.source import ModelSource, check_gguf, check_safetensors, explained

AUTO_CLASSES = (
    *("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
    *("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq"),
)
"""In this order, unless the checkpoint names another in `architectures`."""


DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_config(source: ModelSource) -> PretrainedConfig:
    """The model's config; for a GGUF file the one that transformers derives from its metadata (about 15 seconds)."""
    from transformers import AutoConfig

    check_gguf(source)
    config = explained(source, lambda: AutoConfig.from_pretrained(**source._arguments()))
    config._name_or_path = source.name
    return config


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class of transformers that loads this model whole: with its tower of images, if it has one.

    Raises:
        UnsupportedModelError: it is none that writes text.
    """
    import transformers

    known = [getattr(transformers, name) for name in AUTO_CLASSES]
    remote = [cls for cls in known if cls.__name__ in (getattr(config, "auto_map", None) or {})]
    mapped = [cls for cls in known if type(config) in cls._model_mapping]
    named = [cls for cls in mapped if _class_names(cls._model_mapping[type(config)]) & set(config.architectures or ())]
    if not (remote or mapped):
        # The text part of some models has a class, but no entry in the mappings.
        own = [getattr(transformers, name, None) for name in config.architectures or ()]
        mapped = [cls for cls in own if cls is not None and cls.can_generate()]
    if not (remote or mapped):
        raise UnsupportedModelError(
            f"{config.model_type} is not a decoder of text that transformers knows.",
            f"streamliner cuts what {', '.join(AUTO_CLASSES[:-1])} or {AUTO_CLASSES[-1]} loads.",
        )
    return (remote or named or mapped)[0]


def _class_names(classes: Any) -> set[str]:
    return {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    check_gguf(source)
    try:
        return AutoTokenizer.from_pretrained(**source._arguments())
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(
            f"The tokenizer of {source.name} cannot be loaded: {first_line(error)}",
            "A search needs the tokenizer files beside the weights.",
        ) from error


def load_model(
    source: ModelSource,
    *,
    dtype: str = "auto",
    device: str | None = None,
    device_map: dict[str, str] | str | None = None,
) -> PreTrainedModel:
    """The model, in evaluation mode.

    Args:
        source: from `locate`.
        dtype: "auto" keeps the checkpoint's own (float32 for GGUF, whose weights are dequantised).
        device: a torch device, None for the best there is (cuda, mps, cpu), or "auto" to spread over all GPUs.
        device_map: from `placement.offload_map`, where weights are to be loaded as they are needed.

    Raises:
        ModelError: it cannot be read, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    check_gguf(source)
    cls = AutoModelForCausalLM if source.kind == "gguf" else auto_class(load_config(source))
    arguments = source._arguments() | {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "output_loading_info": True,
    }
    if source.kind == "gguf":
        from transformers import GgufConfig

        arguments["quantization_config"] = GgufConfig(dequantize=True)
        if dtype == "auto":
            arguments["dtype"] = torch.float32
    else:
        check_safetensors(source)
        arguments["use_safetensors"] = True
    spread: Any = device_map or ("auto" if device == "auto" else None)
    if spread:
        arguments |= {"device_map": spread, "offload_folder": folder_for_converted_weights()}
    model, info = explained(source, lambda: cls.from_pretrained(**arguments))
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelError(
            f"{source.name} lacks {len(missing)} tensors that its config asks for, first {missing[0]}.",
            "transformers would start them at random. Is this the checkpoint of a causal language model?",
        )
    model.eval()
    model.requires_grad_(False)
    return model if spread else model.to(device or best_device())


def folder_for_converted_weights() -> str:
    """Where offloaded weights go that transformers converts as it loads them, such as experts; gone at the end."""
    folder = tempfile.mkdtemp(prefix="streamliner-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def silenced_transformers() -> Iterator[None]:
    """Keep transformers' own bars and advice off the terminal: the reporter speaks."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
