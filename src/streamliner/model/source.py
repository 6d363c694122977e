"""Where a model is: a hub id, a folder, a GGUF file, or the memory of this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamliner.errors import MissingExtraError, ModelError, UnsupportedModelError, first_line

INDEX_FILE = "model.safetensors.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NOT_DOWNLOADED = (
    *("*.bin", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.gguf", "*.onnx", "*.tflite", "original/*", "consolidated*"),
)
"""Files of a hub model that are left on the hub: pickles and weights in other formats."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is; `locate` makes one.

    Attributes:
        name: what the user typed.
        kind: "hub", "folder", "gguf" or "memory".
        path: the folder, or the folder of the GGUF file; otherwise empty.
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

    def load_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`.

        Raises:
            ModelError: the model is in memory.
        """
        if self.kind == "memory":
            raise ModelError(f"{self.name} is a model in memory: there are no files to load.")
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.kind == "hub":
            return arguments | {"pretrained_model_name_or_path": self.name, "revision": self.revision}
        arguments |= {"pretrained_model_name_or_path": self.path, "local_files_only": True}
        return arguments | ({"gguf_file": self.gguf_file} if self.kind == "gguf" else {})


def locate(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """Decide what `name` is: an existing folder or GGUF file, otherwise a hub id. Reads no weights, uses no network.

    Raises:
        ModelError: nothing is there and it does not look like a hub id, or the folder has no model in it.
    """
    name = str(name)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is a file, but not a GGUF file.", "Use a folder, a .gguf file or a hub id.")
        return ModelSource(name, "gguf", str(path.parent.resolve()), path.name)
    if path.is_dir():
        return _locate_folder(name, path.resolve(), trust_remote_code)
    if not HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        raise ModelError(
            f"There is no folder or file {name}, and it is not the id of a model on the hub.",
            "Check the path, or use an id such as google/gemma-3-270m.",
        )
    return ModelSource(name, "hub", revision=revision, trust_remote_code=trust_remote_code)


def _locate_folder(name: str, path: Path, trust_remote_code: bool) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource(name, "folder", str(path), trust_remote_code=trust_remote_code)
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    if len(gguf_files) == 1:
        return ModelSource(name, "gguf", str(path), gguf_files[0])
    if gguf_files:
        raise ModelError(f"The folder {name} has {len(gguf_files)} GGUF files.", f"Name one: {path / gguf_files[0]}")
    raise ModelError(
        f"The folder {name} has no model in it: neither config.json nor a GGUF file.",
        "Use a folder that from_pretrained can load.",
    )


def checkpoint_folder(source: ModelSource) -> Path:
    """The folder with the safetensors files and everything next to them; downloads a hub model, but no pickles.

    Raises:
        ModelError: the model has no such folder, or cannot be downloaded.
    """
    if source.kind == "folder":
        return Path(source.path)
    if source.kind != "hub":
        what = "a GGUF file" if source.kind == "gguf" else "a model in memory"
        raise ModelError(f"{source.name} is {what}, not a folder of safetensors files.")
    from huggingface_hub import snapshot_download

    ignored = list(NOT_DOWNLOADED)
    return Path(
        explained(source, lambda: snapshot_download(source.name, revision=source.revision, ignore_patterns=ignored))
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files in `folder` that transformers loads; none if there are none or one is missing."""
    single, index = folder / "model.safetensors", folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


def weight_file_bytes(folder: Path) -> int:
    """Bytes of the safetensors files that transformers loads."""
    return sum(file.stat().st_size for file in weight_files(folder))


def check_gguf(source: ModelSource) -> None:
    """Check that a GGUF model can be read.

    Raises:
        MissingExtraError: the `gguf` extra is missing.
        ModelError: it is not a GGUF file.
    """
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
    """Raise ModelError if a folder has no safetensors file, or a broken one."""
    if source.kind != "folder":
        return
    folder = Path(source.path)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        raise ModelError(
            f"The folder {source.name} has no safetensors file"
            + (f", only {pickles[0]}, a pickle, which can run code when it is read." if pickles else "."),
            "If you trust it, load it once with transformers and save it with save_pretrained." if pickles else "",
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


def explained(source: ModelSource, load: Callable[[], Loaded]) -> Loaded:
    """Return `load()`, and turn what transformers and the hub raise into one sentence.

    Raises:
        ModelError: the model is not available or broken.
        UnsupportedModelError: transformers cannot load it.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    try:
        return load()
    except json.JSONDecodeError as error:
        raise ModelError(f"A JSON file of {source.name} is broken: {error}") from error
    except (OSError, HfHubHTTPError) as error:
        if source.kind == "hub":
            raise ModelError(
                f"There is no folder {source.name} here, and the hub did not return that model: {first_line(error)}",
                "Check the spelling, the network, and for gated models: hf auth login.",
            ) from error
        raise ModelError(f"{source.name} cannot be read: {first_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"A safetensors file of {source.name} is broken: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.name} needs its own Python code.", "Read it; if you trust it, add --trust-remote-code."
            ) from error
        raise UnsupportedModelError(
            f"transformers cannot load {source.name}: {first_line(error)}",
            "It must be a text decoder that an auto class of transformers loads.",
        ) from error
