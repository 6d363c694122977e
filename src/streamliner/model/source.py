"""Where a model is: a hub id, a folder, a GGUF file, or the memory of this process."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamliner.errors import (
    MissingExtraError,
    ModelError,
    StreamlinerError,
    UnsupportedModelError,
    first_line,
    is_out_of_memory,
)
from streamliner.model.gguf_header import Header, read_header, read_headers

INDEX_FILE = "model.safetensors.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
"""How the names of the parts of a GGUF file end."""
NOT_DOWNLOADED = ["*.bin", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.gguf", "*.onnx", "*.tflite"]
NOT_DOWNLOADED += ["original/*", "consolidated*"]
"""Files of a hub model that are left on the hub: pickles and weights in other formats."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is; `locate` makes one."""

    name: str  # what the user typed
    kind: str  # "hub", "folder", "gguf" or "memory"
    path: str = ""  # the folder, or the folder of the GGUF file; otherwise empty
    gguf_file: str = ""  # the file's name within `path`
    revision: str | None = None  # branch, tag or commit on the hub
    trust_remote_code: bool = False  # run the checkpoint's own Python code

    @property
    def gguf_files(self) -> list[Path]:
        """The GGUF file, or all parts of a split one in their order. A ModelError if a part is missing."""
        first = Path(self.path) / self.gguf_file
        match = SPLIT.search(first.name)
        if match is None:
            return [first]
        count, begin = int(match[1]), SPLIT.sub("", first.name)
        files = [first.with_name(f"{begin}-{number:05}-of-{match[1]}.gguf") for number in range(1, count + 1)]
        for file in files:
            if not file.is_file():
                raise ModelError(f"{self.name} is split into {count} parts, and {file} is missing.", "Download it too.")
        return files

    @property
    def gguf_header(self) -> Header:
        """The header of the GGUF file, with the tensors of all parts of a split one."""
        return read_headers(self.gguf_files)

    def load_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`. A ModelError if the model is in memory, or if a GGUF file is none."""
        if self.kind == "memory":
            raise ModelError(f"{self.name} is a model in memory: there are no files to load.")
        trusted: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.kind == "hub":
            return trusted | {"pretrained_model_name_or_path": self.name, "revision": self.revision}
        local = trusted | {"pretrained_model_name_or_path": self.path, "local_files_only": True}
        if self.kind == "folder":
            return local
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("Reading a GGUF file", "gguf") from error
        with (Path(self.path) / self.gguf_file).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{self.name} is not a GGUF file: it does not begin with the letters GGUF.")
        # Whole, as transformers takes a file of that name in the current folder first.
        return local | {"gguf_file": str(Path(self.path) / self.gguf_file)}


def locate(
    model: str | Path | ModelSource, *, revision: str | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """Decide what a name is: an existing folder or GGUF file, otherwise a hub id. Reads no weights, uses no network.

    A ModelError if nothing is there and it does not look like a hub id, or if the folder has no model in it.
    """
    if isinstance(model, ModelSource):
        return model
    name, path = str(model), Path(model).expanduser()
    _check_adapter(path)
    if (path / "config.json").is_file():
        return ModelSource(name, "folder", str(path.resolve()), trust_remote_code=trust_remote_code)
    gguf_files = [path] if path.suffix.lower() == ".gguf" and path.is_file() else sorted(path.glob("*.gguf"))
    models = gguf_files if len(gguf_files) < 2 else [file for file in gguf_files if not is_projector(file)]
    if models and len({SPLIT.sub("", file.name) for file in models}) == 1:
        # Of a split file, the first part stands for all.
        models = [models[0].with_name(SPLIT.sub(r"-00001-of-\1.gguf", models[0].name))]
    if len(models) == 1:
        return ModelSource(name, "gguf", str(models[0].parent.resolve()), models[0].name)
    if models:
        raise ModelError(f"The folder {name} has {len(models)} GGUF files.", f"Name one: {models[0]}")
    if path.is_dir():
        snapshots = sorted(path.glob("snapshots/*/config.json"))
        if snapshots:
            raise ModelError(f"{name} is a folder of the hub's cache.", f"Name the snapshot: {snapshots[-1].parent}")
        missing = "neither config.json nor a GGUF file"
        raise ModelError(f"The folder {name} has no model in it: {missing}.", "Use one that from_pretrained can load.")
    if path.is_file():
        raise ModelError(f"{name} is a file, but not a GGUF file.", "Use a folder, a .gguf file or a hub id.")
    if HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return ModelSource(name, "hub", revision=revision, trust_remote_code=trust_remote_code)
    missing = f"There is no folder or file {name}, and it is not the id of a model on the hub."
    raise ModelError(missing, "Check the path, or use an id such as google/gemma-3-270m.")


def _check_adapter(folder: Path) -> None:
    """Raise ModelError if there are files of an adapter: transformers would put it into the model as it loads."""
    file = folder / "adapter_config.json"
    if file.is_file():
        alone = not (folder / "config.json").is_file()
        what = "is an adapter, not a model" if alone else "has the files of an adapter next to those of a model"
        hint = "Merge it first: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER)"
        raise ModelError(f"{folder} {what}.", hint if alone else f"{hint}, or move adapter_* to another folder.")


def is_projector(file: Path) -> bool:
    """Whether a GGUF file has the image or sound part of a model alone."""
    header = read_header(file)
    return header.architecture == "clip" or header.keys.get("general.type") == "mmproj"


def check_one_file(source: ModelSource) -> None:
    """Raise ModelError if a GGUF file is split into parts, which transformers does not load."""
    if source.kind == "gguf" and len(files := source.gguf_files) > 1:
        joined = SPLIT.sub(".gguf", files[0].name)
        found = f"{files[0]} is one of {len(files)} parts of a GGUF file, which can be cut, but not loaded."
        raise ModelError(found, f"Join them: llama-gguf-split --merge {files[0]} {joined}")


def checkpoint_folder(source: ModelSource) -> Path:
    """The folder with the safetensors files and everything next to them; downloads a hub model, but no pickles.

    A ModelError if the model has no such folder, or cannot be downloaded.
    """
    if source.kind == "folder":
        return Path(source.path)
    if source.kind != "hub":
        what = "a GGUF file" if source.kind == "gguf" else "a model in memory"
        raise ModelError(f"{source.name} is {what}, not a folder of safetensors files.")
    from huggingface_hub import snapshot_download

    name, revision = source.name, source.revision
    return Path(explained(source, lambda: snapshot_download(name, revision=revision, ignore_patterns=NOT_DOWNLOADED)))


def read_index(folder: Path) -> dict[str, str]:
    """Name of a tensor -> name of the file in `folder` that has it, as the index says. A ModelError if it is broken."""
    index = folder / INDEX_FILE
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{index} is broken: {first_line(error)}", "Download the model again.") from error
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} is broken: it has no weight_map.", "Download the model again.")
    for name in set(names.values()):
        if Path(name).name != name:
            raise ModelError(f"{index} names a file outside its folder: {name}.")
        if not (folder / name).is_file():
            raise ModelError(f"{index} names {name}, which does not exist.", "Download the model again.")
    return names


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files in `folder` that transformers loads; others may be copies for other programs."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return (
        [folder / name for name in sorted(set(read_index(folder).values()))] if (folder / INDEX_FILE).is_file() else []
    )


def weight_file_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in `folder` that transformers loads; 0 if there are none."""
    return sum(file.stat().st_size for file in weight_files(folder))


def check_safetensors(source: ModelSource) -> None:
    """Raise ModelError if a folder has no safetensors file, or a broken one."""
    if source.kind not in ("folder", "hub"):
        return
    folder = checkpoint_folder(source)
    files, pickles = weight_files(folder), sorted(folder.glob("*.bin"))
    if not files:
        others = [file.name for file in sorted(folder.glob("*.safetensors"))]
        if others:
            hint = f"transformers loads model.safetensors, or what {INDEX_FILE} names."
            raise ModelError(f"The folder {source.name} has only {', '.join(others[:3])}.", hint)
        only = f", only {pickles[0].name}, a pickle, which can run code when it is read" if pickles else ""
        convert = "AutoModelForCausalLM.from_pretrained(FOLDER, weights_only=True).save_pretrained(NEW)"
        hint = f"If you trust it, convert it once: {convert}" if pickles or source.kind == "hub" else ""
        raise ModelError(f"The folder {source.name} has no safetensors file{only}.", hint)
    for file in files:
        check_safetensors_file(file)


def check_safetensors_file(file: Path) -> None:
    """Raise ModelError if the file's header or length is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise ModelError(f"The safetensors file {file} is broken: {reason}", "Download or copy it again.") from error


def explained(source: ModelSource, load: Callable[[], Loaded]) -> Loaded:
    """Return `load()`, and turn what transformers and the hub raise into one sentence.

    A ModelError if the model is not available or broken, an UnsupportedModelError if transformers cannot load it.
    """
    from safetensors import SafetensorError

    try:
        return load()
    except StreamlinerError:
        raise
    except json.JSONDecodeError as error:
        raise ModelError(f"A JSON file of {source.name} is broken: {error}") from error
    except SafetensorError as error:
        raise ModelError(f"A safetensors file of {source.name} is broken: {first_line(error)}") from error
    except OSError as error:  # the errors of huggingface_hub are some too
        if is_out_of_memory(error):
            raise
        if source.kind != "hub":
            raise ModelError(f"{source.name} cannot be read: {first_line(error)}") from error
        found = f"There is no folder {source.name} here, and the hub did not return that model: {first_line(error)}"
        hint = "Check the spelling, the network, and for gated models: hf auth login."
        raise ModelError(found, hint) from error
    except Exception as error:  # configs raise errors of their own types
        if is_out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            hint = "Read it; if you trust it, add --trust-remote-code."
            raise ModelError(f"{source.name} needs its own Python code.", hint) from error
        hint = "It must be a text decoder that an auto class of transformers loads."
        raise UnsupportedModelError(f"transformers cannot load {source.name}: {first_line(error)}", hint) from error
