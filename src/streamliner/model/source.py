"""Where a model is: a hub id, a folder or a GGUF file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamliner.errors import MissingExtraError, ModelError, UnsupportedModelError

if TYPE_CHECKING:
    pass

from streamliner.errors import first_line

INDEX_FILE = "model.safetensors.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
        explained(source, lambda: snapshot_download(source.name, revision=source.revision, ignore_patterns=ignored))
    )


def check_gguf(source: ModelSource) -> None:
    """Raise if a GGUF model cannot be read: the `gguf` extra is missing, or the file is of another kind."""
    if source.kind != "gguf":
        return
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Reading a GGUF file", "gguf") from error
    with (Path(source.path) / source.gguf_file).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{source.name} is not a GGUF file: it does not begin with the letters GGUF.")


def check_safetensors(source: ModelSource) -> None:
    """Raise ModelError if a folder holds no safetensors file, or a broken one."""
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
            f"The safetensors file {file} is broken: {first_line(error)}", "Download or copy it again."
        ) from error


def explained(source: ModelSource, load: Any) -> Any:
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
                f"There is no folder {source.name} here, and the hub did not give that model: {first_line(error)}",
                "Check the spelling, the network, and for gated models: hf auth login.",
            ) from error
        raise ModelError(f"{source.name} cannot be read: {first_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"A safetensors file of {source.name} is broken: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        text = first_line(error)
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.name} brings its own Python code.", "Read it; if you trust it, add --trust-remote-code."
            ) from error
        raise UnsupportedModelError(
            f"transformers cannot load {source.name}: {text}",
            "It must be a decoder of text that an auto class of transformers loads.",
        ) from error


def read_sizes(folder: Path) -> int:
    """Bytes of the safetensors files in `folder` that make up its model; 0 if there is none."""
    index = folder / INDEX_FILE
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return sum(file.stat().st_size for file in folder.glob("model.safetensors"))
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sum((folder / file).stat().st_size for file in files if (folder / file).is_file())
