"""A model in use: where it is, its structure without weights, and its blocks once loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streamliner.errors import EvaluationError, ModelError, UserError, first_line
from streamliner.model.blocks import Blocks
from streamliner.model.devices import best_device, faster_precision, is_spread, offload_map, release_cached_memory
from streamliner.model.fingerprint import model_identity
from streamliner.model.load import load_config, load_model, load_tokenizer
from streamliner.model.shell import build_shell, shell_like
from streamliner.model.size import count_parameters, weight_bytes
from streamliner.model.source import ModelSource, explained, locate, weight_file_bytes
from streamliner.model.stack import Stack, find_stack
from streamliner.runs.files import MARK
from streamliner.runs.ranks import Ranks, find_ranks
from streamliner.runs.reporter import Reporter, Silent
from streamliner.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from streamliner.settings import ModelLike


@dataclass
class Session:
    """A model in use. `open_model` makes one.

    Attributes:
        source: where the model is.
        config: of the whole model.
        settings: how it is loaded.
        ranks: the processes that share the work.
        blocks: of the loaded model, None before `load`.
        model: the user's own model, if it is one in memory. It is not moved, changed or released.
        given_tokenizer: the user's own tokenizer, None for the one next to the weights.
    """

    source: ModelSource
    config: PretrainedConfig
    settings: ModelSettings = field(default_factory=ModelSettings)
    ranks: Ranks = field(default_factory=Ranks)
    blocks: Blocks | None = None
    model: PreTrainedModel | None = None
    given_tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, *, name: str = "", tokenizer: PreTrainedTokenizerBase | None = None) -> Session:
        """The session of a model in memory.

        Args:
            model: in evaluation mode.
            name: for messages and records; by default the name or path that it was loaded from.
            tokenizer: needed for everything that reads text.

        Raises:
            ModelError: it is not a `PreTrainedModel`, or in training mode.
        """
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            raise ModelError(
                f"A model of transformers is needed, not {type(model).__name__}.",
                "Pass a PreTrainedModel, a hub id, a folder or a GGUF file.",
            )
        name = name or model.config.name_or_path or type(model).__name__
        if model.training:
            raise ModelError(f"{name} is in training mode, in which dropout changes its outputs.", "Call model.eval().")
        device = "auto" if is_spread(model) else str(model.device)
        return cls(
            ModelSource(name, "memory"),
            model.config,
            ModelSettings(device=device),
            find_ranks(device),
            model=model,
            given_tokenizer=tokenizer,
        )

    @cached_property
    def shell(self) -> PreTrainedModel:
        """The model without its weights; quantised weights count as the dense ones that they stand for."""
        model = self.model
        if model is not None:
            dense = copy.deepcopy(self.config)
            vars(dense).pop("quantization_config", None)
            return explained(self.source, lambda: shell_like(model, dense))
        kept = {key: value for key, value in self.config.to_dict().items() if key != "quantization_config"}
        return build_shell(self.source, type(self.config).from_dict(kept))

    @cached_property
    def stack(self) -> Stack:
        """Where the model keeps its blocks."""
        return find_stack(self.shell)

    @property
    def num_blocks(self) -> int:
        """Blocks of the model."""
        return len(self.stack)

    @property
    def identity(self) -> dict[str, Any]:
        """What a plan must agree with."""
        return model_identity(self.source.name, self.stack.config)

    @property
    def parameters(self) -> int:
        """Parameters of the model, shared ones once."""
        return count_parameters(self.shell)

    def describe(self) -> dict[str, Any]:
        """The model's name and size and how streamliner cut it, as a JSON value.

        `method` is that of the plan, followed by ", healed" if the model was healed. For a model that streamliner did
        not cut, `method` and `parent` are "" and `removed` is empty.
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

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The user's tokenizer if there is one, otherwise the one next to the weights.

        Raises:
            ModelError: it cannot be loaded, or the model is in memory and came without one.
        """
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        if self.model is not None:
            raise ModelError(f"{self.source.name} is a model in memory without a tokenizer.", "Pass tokenizer=...")
        return load_tokenizer(self.source)

    def device_map(self, shell: Any) -> dict[str, str] | str | None:
        """Where the parts of the model, or of its cut `shell`, go; None if all go to one device."""
        if self.settings.offload:
            return offload_map(shell, self.stack.path, self.settings.offload, self.settings.device)
        return "auto" if self.settings.device == "auto" else None

    def load(self, reporter: Reporter | None = None) -> Blocks:
        """The blocks of the model, which is loaded by the first call."""
        if self.blocks is None:
            self.blocks = Blocks(self.model) if self.model is not None else self._load(reporter or Silent())
        return self.blocks

    def _load(self, reporter: Reporter) -> Blocks:
        reporter.say(f"Loading {self.source.name} ...")
        device = self.settings.device
        if self.ranks.size > 1 and device is None:
            device = str(self.ranks.device)
        placed = self.device_map(self.shell) if self.settings.offload else None
        blocks = Blocks(load_model(self.source, dtype=self.settings.dtype, device=device, device_map=placed))
        reporter.say(f"{len(blocks)} blocks in {blocks.path}, {blocks.dtype} on {blocks.device}.")
        faster = faster_precision(blocks.dtype, blocks.device)
        if faster:
            name = str(faster[0]).removeprefix("torch.")
            reporter.say(f"Tip: matrix products are {faster[1]:.1f}x faster here in {name}: --dtype {name}.")
        return blocks

    def release(self) -> None:
        """Free the memory of the loaded model, unless it is the user's own."""
        if self.model is None:
            self.blocks = None
            release_cached_memory()


def open_model(
    model: str | Path | PreTrainedModel | Session,
    settings: ModelSettings | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Session:
    """Find a model and read its config, but no weights.

    Args:
        model: a hub id, a folder, a GGUF file, a model in memory, or a session, which is returned.
        settings: how to load it; has no meaning for a model in memory.
        tokenizer: used in place of the one next to the weights.

    Raises:
        ModelError: there is no such model, or the settings contradict each other.
    """
    if isinstance(model, Session):
        return model
    if not isinstance(model, (str, Path)):
        return Session.of(model, tokenizer=tokenizer)
    settings = settings or ModelSettings()
    source = locate(model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    ranks = find_ranks(settings.device)
    _check_placement(settings, source, ranks)
    return Session(source, load_config(source), settings, ranks, given_tokenizer=tokenizer)


def _check_placement(settings: ModelSettings, source: ModelSource, ranks: Ranks) -> None:
    if settings.device not in (None, "auto"):
        try:
            torch.zeros(1, device=settings.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"The device {settings.device} cannot be used: {first_line(error)}") from error
    if settings.device == "auto" and (settings.offload or ranks.size > 1):
        other = "--offload" if settings.offload else "several processes"
        raise ModelError(f"--device auto spreads one model over all GPUs and cannot be combined with {other}.")
    if settings.offload and source.kind == "gguf":
        raise ModelError(
            f"--offload keeps weights in safetensors files, and {source.name} is a GGUF file.",
            "Use a folder of safetensors files.",
        )
    if settings.offload == "cpu" and torch.device(settings.device or best_device()).type == "cpu":
        raise ModelError(
            "--offload cpu keeps weights in the CPU's memory for a GPU, and the model runs on the CPU.",
            "Use --offload disk.",
        )


def checkpoint_bytes(session: Session) -> int | None:
    """Size of the weight files, or of the weights in memory; None for a hub model that is not downloaded."""
    source = session.source
    if source.kind == "gguf":
        return (Path(source.path) / source.gguf_file).stat().st_size
    if session.model is not None:
        return weight_bytes(session.model)
    return weight_file_bytes(Path(source.path)) if source.kind == "folder" else None


def open_models(
    models: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
    dense: ModelLike | None,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: ModelSettings | None,
) -> list[Session]:
    """Open the models to compare, each once, the dense one first.

    Args:
        models: names of models or models in memory; a mapping names them in results.
        dense: the model that the others are compared with, if there is one.
        tokenizer: of models in memory.
        settings: how to load models that are named.

    Raises:
        EvaluationError: there is a dense model, and no other.
        ModelError: as `open_model`.
    """
    if isinstance(models, Mapping):
        named = list(models.items())
    else:
        several = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
        named = [("", model) for model in several]
    if dense is not None:
        named.insert(0, ("", dense))
    sessions: list[Session] = []
    seen: list[object] = []
    for name, model in named:
        key = str(model).rstrip("/") if isinstance(model, (str, Path)) else id(model)
        if key in seen:
            continue
        seen.append(key)
        if isinstance(model, (str, Path)):
            sessions.append(open_model(key if isinstance(key, str) and key else model, settings))
        else:
            sessions.append(Session.of(model, name=name, tokenizer=tokenizer))
    if dense is not None and len(sessions) == 1:
        raise EvaluationError(
            f"There is nothing to compare with the dense model {sessions[0].source.name}.", "Name a cut model."
        )
    return sessions
