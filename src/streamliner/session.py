"""A model at work: where it is, its structure without weights, its blocks once loaded; and who is told what goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from streamliner import models
from streamliner.blocks import Blocks
from streamliner.calibration import SEQUENCE_LENGTH
from streamliner.cut.output import MARK
from streamliner.cut.structure import Structure
from streamliner.errors import ModelError, TextError
from streamliner.measure.ranks import Ranks, find_ranks
from streamliner.placement import faster_precision, offload_map
from streamliner.search import model_identity
from streamliner.stack import Stack


class Reporter(Protocol):
    """Where messages and progress go."""

    def say(self, message: str) -> None:
        """Tell the user something."""

    def progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A context that gives a function to call with (done, total)."""

    def training(self, steps: int) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """A context that gives a function to call with what happened in each step (`heal.train`)."""


class Silent:
    """A reporter for use as a library: says nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Nothing."""
        return nullcontext(lambda done, total: None)

    def training(self, steps: int) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """Nothing."""
        return nullcontext(lambda row: None)


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and how to load it (`models.locate`, `models.load_model`)."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    device: str | None = None
    offload: str | None = None


@dataclass
class Session:
    """A model at work: its source, its config, the processes that share the work, and once loaded its blocks."""

    settings: ModelSettings
    source: models.ModelSource
    config: Any
    ranks: Ranks = field(default_factory=Ranks)
    blocks: Blocks | None = None

    @cached_property
    def structure(self) -> Structure:
        """The model's structure without its weights."""
        kept = {key: value for key, value in self.config.to_dict().items() if key != "quantization_config"}
        clean = type(self.config).from_dict(kept)
        return Structure(models.build_shell(self.source, clean))

    @property
    def stack(self) -> Stack:
        """The stack of the structure."""
        return self.structure.stack

    @property
    def num_blocks(self) -> int:
        """Blocks of the dense model."""
        return len(self.stack)

    @property
    def identity(self) -> dict[str, Any]:
        """What a plan must agree with."""
        return model_identity(self.source.name, self.stack.config)

    @property
    def parameters(self) -> int:
        """Of the model, those that several modules share once."""
        return sum(parameter.numel() for parameter in self.structure.shell.parameters())

    def describe(self) -> dict[str, Any]:
        """JSON value for results: the model's name and size, and how streamliner cut it, if it did.

        `method` is that of the plan, with ", healed" behind it where the model was healed. A model that streamliner did
        not cut has "", no `removed` blocks and "" as its `parent`.
        """
        mark = Path(self.source.path) / MARK
        cut = self.source.kind == "folder" and mark.is_file()
        plan = json.loads(mark.read_text(encoding="utf-8")) if cut else {}
        return {
            "model": self.source.name,
            "blocks": self.num_blocks,
            "parameters": self.parameters,
            "method": plan.get("method", "") + (", healed" if "healing" in plan else ""),
            "removed": plan.get("removed", []),
            "parent": plan.get("model", {}).get("name", ""),
        }

    def window_length(self, asked: int | None, flag: str = "--sequence-length") -> int:
        """Tokens of a window: as asked for, or SLEB's 2048, or the model's limit if that is less.

        Raises:
            TextError: more was asked for than the model has positions.
        """
        most = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)
        length = asked or min(SEQUENCE_LENGTH, most or SEQUENCE_LENGTH)
        if most and length > most:
            raise TextError(
                f"{flag} {length} is more than the {most} positions of {self.source.name}.",
                f"Use {most} or less.",
            )
        return length

    def device_map(self, shell: Any) -> dict[str, str] | str | None:
        """Where the parts of the model, or of its cut `shell`, go; None if all go to one device."""
        if self.settings.offload:
            return offload_map(shell, self.stack.path, self.settings.offload, self.settings.device)
        return "auto" if self.settings.device == "auto" else None

    def load(self, reporter: Reporter) -> Blocks:
        """The blocks of the loaded model; loads it the first time."""
        if self.blocks is None:
            reporter.say(f"Loading {self.source.name} ...")
            device = self.settings.device
            if self.ranks.size > 1 and device is None:
                device = str(self.ranks.device)
            placed = self.device_map(self.structure.shell) if self.settings.offload else None
            model = models.load_model(self.source, dtype=self.settings.dtype, device=device, device_map=placed)
            self.blocks = Blocks(model)
            reporter.say(
                f"{len(self.blocks)} blocks in {self.blocks.path}, {self.blocks.dtype} on {self.blocks.device}."
            )
            faster = faster_precision(self.blocks.dtype, self.blocks.device)
            if faster:
                name = str(faster[0]).removeprefix("torch.")
                reporter.say(f"This machine multiplies {faster[1]:.1f} times faster in {name}: --dtype {name}.")
        return self.blocks


def open_session(settings: ModelSettings) -> Session:
    """Find the model and read its config; no weights yet."""
    source = models.locate(settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    ranks = find_ranks(settings.device)
    if settings.device == "auto" and (settings.offload or ranks.size > 1):
        other = "--offload" if settings.offload else "several processes"
        raise ModelError(f"--device auto spreads one model over all GPUs, which does not go with {other}.")
    if settings.offload and source.kind == "gguf":
        raise ModelError(
            f"--offload keeps weights in safetensors files, and {source.name} is a GGUF file.",
            "Give a folder of safetensors files.",
        )
    if settings.offload == "cpu" and torch.device(settings.device or models.best_device()).type == "cpu":
        raise ModelError(
            "--offload cpu keeps weights in the processor's memory for a GPU, and the model runs on the processor.",
            "Use --offload disk.",
        )
    return Session(settings, source, models.load_config(source), ranks)


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
