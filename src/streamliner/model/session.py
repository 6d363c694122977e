"""A model at work: where it is, its structure without weights, its blocks once loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streamliner.errors import ModelError
from streamliner.model.blocks import Blocks
from streamliner.model.devices import best_device, faster_precision, offload_map
from streamliner.model.fingerprint import model_identity
from streamliner.model.load import load_config, load_model
from streamliner.model.shell import build_shell
from streamliner.model.source import ModelSource, locate, read_sizes
from streamliner.model.stack import Stack, find_stack
from streamliner.runs.files import MARK
from streamliner.runs.ranks import Ranks, find_ranks
from streamliner.runs.reporter import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    source: ModelSource
    config: Any
    ranks: Ranks = field(default_factory=Ranks)
    blocks: Blocks | None = None

    @cached_property
    def shell(self) -> PreTrainedModel:
        """The model without its weights."""
        kept = {key: value for key, value in self.config.to_dict().items() if key != "quantization_config"}
        return build_shell(self.source, type(self.config).from_dict(kept))

    @cached_property
    def stack(self) -> Stack:
        """Where the model keeps its blocks."""
        return find_stack(self.shell)

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
        return sum(parameter.numel() for parameter in self.shell.parameters())

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
            placed = self.device_map(self.shell) if self.settings.offload else None
            model = load_model(self.source, dtype=self.settings.dtype, device=device, device_map=placed)
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
    source = locate(settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    ranks = find_ranks(settings.device)
    if settings.device == "auto" and (settings.offload or ranks.size > 1):
        other = "--offload" if settings.offload else "several processes"
        raise ModelError(f"--device auto spreads one model over all GPUs, which does not go with {other}.")
    if settings.offload and source.kind == "gguf":
        raise ModelError(
            f"--offload keeps weights in safetensors files, and {source.name} is a GGUF file.",
            "Give a folder of safetensors files.",
        )
    if settings.offload == "cpu" and torch.device(settings.device or best_device()).type == "cpu":
        raise ModelError(
            "--offload cpu keeps weights in the processor's memory for a GPU, and the model runs on the processor.",
            "Use --offload disk.",
        )
    return Session(settings, source, load_config(source), ranks)


def checkpoint_bytes(session: Session) -> int | None:
    """Size of the weight files; None for a hub model that is not here yet."""
    if session.source.kind == "gguf":
        return (Path(session.source.path) / session.source.gguf_file).stat().st_size
    return read_sizes(Path(session.source.path)) if session.source.kind == "folder" else None
