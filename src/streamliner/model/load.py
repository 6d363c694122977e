"""Load a model's config, its tokenizer, or the model itself."""

import atexit
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from streamliner.errors import ModelError, UnsupportedModelError, first_line
from streamliner.model.compat import gguf_tokenizer_is_separate, quick_gguf
from streamliner.model.devices import best_device
from streamliner.model.gguf_config import check_tensors, complete_config
from streamliner.model.gguf_header import check_whole
from streamliner.model.precision import quantised_by
from streamliner.model.source import ModelSource, check_one_file, check_safetensors, explained, locate
from streamliner.types import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

AUTO_CLASSES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
}
"""Auto classes, and their tables of config class -> model class. The first that fits is used, unless the checkpoint
names another in `architectures`."""


MOST_PARTS, LARGEST_SIZE = 20_000, 1 << 20
"""More blocks or experts than any model has, and a width that none has."""
WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "_heads", "n_embd", "d_model", "d_ff", "_rank")
SIZES = ("_id", "_size", "_dim", "_token", "_window")
"""How names of fields end that are no numbers of blocks or experts, though they have such a word in them."""
UNUSED_ATTRIBUTE = "streamliner_unused"
"""Attribute of a loaded model: names of the checkpoint's tensors that it has no place for."""


def load_config(model: str | Path | ModelSource) -> PretrainedConfig:
    """The config of a model; of a GGUF file the one that transformers derives from its metadata."""
    from transformers import AutoConfig

    source = locate(model)
    arguments = source.load_arguments()
    header = source.gguf_header if source.kind == "gguf" else None
    for file in source.gguf_files if header else ():
        check_whole(file)
    with quick_gguf() if header else nullcontext():
        config = explained(source, lambda: AutoConfig.from_pretrained(**arguments))
    if header is not None:
        complete_config(config, header)
        if "output.weight" in header.tensors:  # transformers looks for it in the first part of a split file alone
            config.tie_word_embeddings = False
    _check_values(config, source.name)
    config.name_or_path = source.name
    return config


def _check_values(config: Any, name: str) -> None:
    """Raise ModelError for class names that are none, and for sizes that no model has (it would be built for hours)."""
    named = config.architectures
    if named is not None and not (isinstance(named, list) and all(isinstance(each, str) for each in named)):
        raise ModelError(f"The config of {name} says architectures = {named!r}, which is no list of class names.")
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "model_type"))]
    for key, value in ((key, value) for part in parts for key, value in vars(part).items()):
        counts = any(each in key for each in ("layer", "expert", "block")) and not key.endswith(SIZES)
        most = MOST_PARTS if counts else LARGEST_SIZE if key.endswith(WIDTHS) else math.inf
        if type(value) is int and value > most:
            raise ModelError(f"The config of {name} says {key} = {value}, which cannot be.", "Is the file broken?")


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class of transformers that loads this model whole, images included; for some models their own class.

    An UnsupportedModelError if the model does not write text.
    """
    import transformers

    kind, architectures = type(config), config.architectures or ()
    tables = {getattr(transformers, name): getattr(transformers, table) for name, table in AUTO_CLASSES.items()}
    remote = [cls for cls in tables if cls.__name__ in (getattr(config, "auto_map", None) or {})]
    mapped = {cls: table[kind] for cls, table in tables.items() if kind in table}
    several = {cls: classes if isinstance(classes, tuple) else (classes,) for cls, classes in mapped.items()}
    named = [cls for cls, classes in several.items() if any(each.__name__ in architectures for each in classes)]
    # The text part of some models has a class, but no entry in the tables.
    own = (getattr(transformers, name, None) for name in architectures)
    found = remote or named or [*mapped] or [cls for cls in own if cls is not None and cls.can_generate()]
    if not found:
        *first, last = AUTO_CLASSES
        hint = f"streamliner cuts what {', '.join(first)} or {last} loads."
        raise UnsupportedModelError(f"{config.model_type} is not a text decoder that transformers knows.", hint)
    return found[0]


def check_gguf_tensors(source: ModelSource, model: Any) -> None:
    """Raise UnsupportedModelError if a GGUF file has tensors that the model, with or without weights, does not have."""
    if source.kind == "gguf":
        check_tensors(source.gguf_header, model)


def load_tokenizer(model: str | Path | ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        model: a hub id, a folder or a GGUF file, or what `locate` made of one.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    source = locate(model)
    quick = quick_gguf() if source.kind == "gguf" and gguf_tokenizer_is_separate() else nullcontext()
    try:
        with quick:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**source.load_arguments())
    except Exception as error:  # tokenizers raise errors of their own types
        hint = "A search needs the tokenizer files next to the weights."
        absent = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
        if absent and (Path(source.path) / "tokenizer.model").is_file():
            packages = " ".join(name.replace("google.", "") for name in absent)
            hint = f"Its tokenizer.model needs a library: pip install {packages}"
        raise ModelError(f"The tokenizer of {source.name} cannot be loaded: {first_line(error)}", hint) from error
    return tokenizer


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def load_model(
    model: str | Path | ModelSource,
    *,
    dtype: str = "auto",
    device: str | None = None,
    device_map: dict[str, str] | str | None = None,
) -> PreTrainedModel:
    """Load a model, frozen and in evaluation mode.

    Args:
        model: a hub id, a folder or a GGUF file, or what `locate` made of one.
        dtype: "auto" keeps the checkpoint's own (float32 for GGUF, whose weights are dequantised).
        device: a torch device, None for the best there is (cuda, mps, cpu), or "auto" to spread over all GPUs.
        device_map: from `devices.offload_map`, for weights that are loaded when they are needed.

    Raises:
        ModelError: it cannot be read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    source = locate(model)
    arguments = source.load_arguments() | {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    check_one_file(source)
    if source.kind == "gguf":
        cls, dense = AutoModelForCausalLM, {"dtype": torch.float32} if dtype == "auto" else {}
        arguments |= dense | {"quantization_config": GgufConfig(dequantize=True), "config": load_config(source)}
    else:
        check_safetensors(source)
        cls, arguments["use_safetensors"] = auto_class(load_config(source)), True
    spread = device_map or ("auto" if device == "auto" else None)
    place = torch.device("cpu" if spread else device or best_device())
    if spread:
        arguments |= {"device_map": spread, "offload_folder": folder_for_converted_weights()}
    elif place.type != "cpu" and source.kind != "gguf":  # straight there: several ranks would not fit in memory first
        arguments["device_map"] = {"": place}
    try:
        with quick_gguf() if source.kind == "gguf" else nullcontext():
            loaded, info = explained(source, lambda: cls.from_pretrained(**arguments, output_loading_info=True))
    except UnsupportedModelError as error:
        if source.kind == "gguf" or not quantised_by(load_config(source)):
            raise
        hint = "Without the library and the device that its format needs, search the model that it was quantised from:"
        raise UnsupportedModelError(error.args[0], f"{hint} a plan is for both.") from error.__cause__
    check_gguf_tensors(source, loaded)
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise ModelError(
            f"{len(missing)} tensors that the config of {source.name} asks for are missing, first {missing[0]}.",
            "transformers would fill them with random numbers. Is this the checkpoint of a causal language model?",
        )
    setattr(loaded, UNUSED_ATTRIBUTE, frozenset(map(str, info["unexpected_keys"])))
    loaded.eval()
    loaded.requires_grad_(False)
    return loaded if "device_map" in arguments else loaded.to(place)  # type: ignore[no-any-return]


def folder_for_converted_weights() -> str:
    """A folder for offloaded weights that transformers converts when it loads them; deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="streamliner-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def silenced_transformers() -> Iterator[None]:
    """While open, transformers shows no progress bars and no warnings."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
