"""Identity of a model's weights, config and tokenizer: what a journal or a cache may rely on."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from streamliner.model.blocks import Blocks
from streamliner.model.compat import attention_kernel
from streamliner.model.devices import loaded_tensor
from streamliner.model.source import ModelSource, checkpoint_folder
from streamliner.runs.cache import json_hash


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of names, shapes, types and all bytes of the saved tensors; about a second per GB."""
    digest = hashlib.sha256()
    saved = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    for name, tensor in (*model.named_parameters(), *buffers):
        values = loaded_tensor(model, name, tensor)
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


SAMPLED = "sampled:"
"""How the hash of a checkpoint begins that was not read whole."""
PIECES, PIECE_BYTES = 4096, 64 << 10


def checkpoint_hash(source: ModelSource, *, whole: bool = False) -> str | None:
    """SHA-256 over the weight files, of a hub model downloaded. None for a model in memory.

    Of more than 256 MiB together, it is over the sizes of the files and 4096 pieces of 64 KiB at equal distances, which
    takes under a second. That tells trained, merged and converted models apart, but may not see a change of some rows
    of one tensor. With `whole` all bytes count, as in marks of before; about a second per GB.
    """
    if source.kind == "memory":
        return None
    gguf = source.kind == "gguf"
    files = source.gguf_files if gguf else sorted(checkpoint_folder(source).glob("*.safetensors"))
    distance = sum(path.stat().st_size for path in files) // PIECES
    digest = hashlib.sha256()
    if whole or distance <= PIECE_BYTES:
        for path in files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{size}.".encode())
        with path.open("rb", buffering=0) as file:
            for begin in range(0, size, distance):
                file.seek(begin)
                digest.update(file.read(PIECE_BYTES))
    return SAMPLED + digest.hexdigest()


def fingerprint(blocks: Blocks) -> dict[str, Any]:
    """All that measurements of a loaded model depend on besides their input, as a JSON value.

    Its name and where it lies are no part of it. Of releases the first two numbers count.
    """
    config = blocks.model.config
    releases = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "transformers")}
    return {
        "weights": weights_hash(blocks.model),
        "config": config_values(config),
        "attention": attention_kernel(config),
        "dtype": str(blocks.dtype),
        "device": blocks.device.type,
        "releases": releases,
    }


def config_values(config: Any) -> dict[str, Any]:
    """The fields of a config or generation config, without the model's name and the release; empty for None."""
    names = ("_name_or_path", "transformers_version")
    fields = {} if config is None else {key: value for key, value in config.to_dict().items() if key not in names}
    return json.loads(json.dumps(fields, sort_keys=True, default=str))  # type: ignore[no-any-return]


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary and of its settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else tokenizer.get_vocab()
    settings = {key: value for key, value in tokenizer.init_kwargs.items() if key != "name_or_path"}
    return json_hash([vocabulary, settings])
