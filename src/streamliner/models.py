"""Load a model, its tokenizer or only its config: from a hub id, a folder or a GGUF file.

Only what the user names is reached for: a folder or a file is read with no network. Weights come from safetensors or
GGUF, never from pickles, and code from a checkpoint runs only with `trust_remote_code`.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamliner.errors import MissingExtraError, ModelError, UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
AUTO_CLASSES = (
    *("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
    *("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq"),
)
"""In this order, unless the checkpoint names another in `architectures`."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is. Make one with `locate`.

    Attributes:
        name: what the user typed.
        kind: "hub", "folder" or "gguf".
        path: the folder, or the folder of the GGUF file; empty for the hub.
        gguf_file: the file's name within `path`.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run the checkpoint's own Python code.
    """

    name: str
    kind: str
    path: str = ""
    gguf_file: str = ""
    revision: str | None = None
    trust_remote_code: bool = False

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.kind == "hub":
            arguments |= {"pretrained_model_name_or_path": self.name, "revision": self.revision}
        else:
            arguments |= {"pretrained_model_name_or_path": self.path, "local_files_only": True}
        if self.kind == "gguf":
            arguments["gguf_file"] = self.gguf_file
        return arguments


def locate(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """Decide what `name` is: an existing folder or GGUF file first, else a hub id. Reads no weights, uses no network.

    Raises:
        ModelError: nothing is there and it does not look like a hub id, or the folder holds no model.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is a file, but not a GGUF file.", "Give a folder, a .gguf file or a hub id.")
        return ModelSource(name, "gguf", str(path.parent.resolve()), path.name)
    if path.is_dir():
        return _locate_folder(name, path.resolve(), trust_remote_code)
    if not HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        raise ModelError(
            f"There is no folder or file {name}, and it is not the id of a model on the hub.",
            "Check the path, or give an id such as google/gemma-3-270m.",
        )
    return ModelSource(name, "hub", revision=revision, trust_remote_code=trust_remote_code)


def _locate_folder(name: str, path: Path, trust_remote_code: bool) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource(name, "folder", str(path), trust_remote_code=trust_remote_code)
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    if len(gguf_files) == 1:
        return ModelSource(name, "gguf", str(path), gguf_files[0])
    if gguf_files:
        raise ModelError(f"The folder {name} holds {len(gguf_files)} GGUF files.", f"Name one: {path / gguf_files[0]}")
    raise ModelError(
        f"The folder {name} holds no model: neither config.json nor a GGUF file.",
        "Give the folder that from_pretrained would load.",
    )


def load_config(source: ModelSource) -> PretrainedConfig:
    """The model's config; for a GGUF file the one that transformers derives from its metadata (about 15 seconds)."""
    from transformers import AutoConfig

    _check_gguf(source)
    config = _explained(source, lambda: AutoConfig.from_pretrained(**source._arguments()))
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


def build_shell(source: ModelSource, config: PretrainedConfig) -> PreTrainedModel:
    """The model of `config` without its weights."""
    from streamliner.cut.structure import make_shell

    cls = auto_class(config)
    build = getattr(cls, "from_config", None)
    if build is None:
        return _explained(source, lambda: make_shell(cls._from_config, config))  # type: ignore[no-any-return]
    trusted = functools.partial(build, trust_remote_code=source.trust_remote_code)
    return _explained(source, lambda: make_shell(trusted, config))  # type: ignore[no-any-return]


def _class_names(classes: Any) -> set[str]:
    return {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    _check_gguf(source)
    try:
        return AutoTokenizer.from_pretrained(**source._arguments())
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(
            f"The tokenizer of {source.name} cannot be loaded: {_first_line(error)}",
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
    import torch
    from transformers import AutoModelForCausalLM

    _check_gguf(source)
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
        _check_safetensors(source)
        arguments["use_safetensors"] = True
    spread: Any = device_map or ("auto" if device == "auto" else None)
    if spread:
        arguments |= {"device_map": spread, "offload_folder": folder_for_converted_weights()}
    model, info = _explained(source, lambda: cls.from_pretrained(**arguments))
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


def best_device() -> torch.device:
    """Cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def checkpoint_folder(source: ModelSource) -> Path:
    """The folder with the safetensors files and all that lies beside them; downloads a hub model (no pickles)."""
    if source.kind == "folder":
        return Path(source.path)
    if source.kind == "gguf":
        raise ModelError(f"{source.name} is a GGUF file, not a folder of safetensors files.")
    from huggingface_hub import snapshot_download

    ignored = [
        "*.bin",
        "*.pt",
        "*.pth",
        "*.msgpack",
        "*.h5",
        "*.gguf",
        "*.onnx",
        "*.tflite",
        "original/*",
        "consolidated*",
    ]
    return Path(
        _explained(source, lambda: snapshot_download(source.name, revision=source.revision, ignore_patterns=ignored))
    )


def _check_gguf(source: ModelSource) -> None:
    if source.kind != "gguf":
        return
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Reading a GGUF file", "gguf") from error
    with (Path(source.path) / source.gguf_file).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{source.name} is not a GGUF file: it does not begin with the letters GGUF.")


def _check_safetensors(source: ModelSource) -> None:
    if source.kind != "folder":
        return
    folder = Path(source.path)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        raise ModelError(
            f"The folder {source.name} holds no safetensors file"
            + (f", only {pickles[0]}, a pickle, which can run code when it is read." if pickles else "."),
            "Load it once with transformers where you trust it, and save_pretrained it again." if pickles else "",
        )
    for file in files:
        check_safetensors_file(file)


def check_safetensors_file(file: Path) -> None:
    """Raise ModelError if the file's header or length is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The safetensors file {file} is broken: {_first_line(error)}", "Download or copy it again."
        ) from error


def _explained(source: ModelSource, load: Any) -> Any:
    """Run `load`, turning what transformers and the hub raise into one sentence."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    try:
        return load()
    except json.JSONDecodeError as error:
        raise ModelError(f"A JSON file of {source.name} is broken: {error}") from error
    except (OSError, HfHubHTTPError) as error:
        if source.kind == "hub":
            raise ModelError(
                f"There is no folder {source.name} here, and the hub did not give that model: {_first_line(error)}",
                "Check the spelling, the network, and for gated models: hf auth login.",
            ) from error
        raise ModelError(f"{source.name} cannot be read: {_first_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"A safetensors file of {source.name} is broken: {_first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        text = _first_line(error)
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.name} brings its own Python code.", "Read it; if you trust it, add --trust-remote-code."
            ) from error
        raise UnsupportedModelError(
            f"transformers cannot load {source.name}: {text}",
            "It must be a decoder of text that an auto class of transformers loads.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
