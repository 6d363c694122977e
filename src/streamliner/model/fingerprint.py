"""Identity of weights, config and tokenizer: what a journal or a cache may trust."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from streamliner.runs.cache import _hash


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and all bytes of the saved tensors. About a second per GB, once."""
    digest = hashlib.sha256()
    modules = dict(model.named_modules())
    saved = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    for name, tensor in (*model.named_parameters(), *buffers):
        if tensor.is_meta:  # offloaded: the hook of its module knows where it is
            owner, _, own_name = name.rpartition(".")
            tensor = modules[owner]._hf_hook.weights_map[own_name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_hash(config: Any) -> str:
    """Of a config or generation config, but where it lies; "" for none: scales, limits, penalties."""
    if config is None:
        return ""
    return _hash(
        {key: item for key, item in config.to_dict().items() if key not in ("_name_or_path", "transformers_version")}
    )


def tokenizer_hash(tokenizer: Any) -> str:
    """Of its words and of what it does around them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else tokenizer.get_vocab()
    settings = {key: value for key, value in tokenizer.init_kwargs.items() if key != "name_or_path"}
    return _hash([words, settings])


def model_identity(name: str, config: Any) -> dict[str, Any]:
    """What a plan must agree with: the kind and shape of the model, not its weights, so a fine-tune may share it."""
    return {
        "name": name,
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "vocab_size": config.vocab_size,
    }
