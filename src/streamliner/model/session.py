"""A model in use: where it is, its structure without weights, and its blocks once loaded."""

import copy
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from streamliner.errors import EvaluationError, ModelError, TextError, UserError, first_line
from streamliner.model.blocks import Blocks
from streamliner.model.devices import (
    HALVES,
    WORTH_IT,
    best_device,
    enough_memory,
    faster_precision,
    free_and_total,
    is_slow,
    is_spread,
    offload_map,
    release_memory,
)
from streamliner.model.load import auto_class, check_gguf_tensors, load_config, load_model, load_tokenizer
from streamliner.model.mark import read_mark
from streamliner.model.parts import count_parameters, weight_bytes
from streamliner.model.precision import precision, quantised_by
from streamliner.model.shell import make_shell
from streamliner.model.source import HUB_ID, ModelSource, explained, locate, weight_file_bytes
from streamliner.model.stack import Stack, find_stack
from streamliner.runs.files import PLAN_ATTRIBUTE
from streamliner.runs.ranks import Ranks, find_ranks
from streamliner.runs.reporter import Reporter
from streamliner.settings import ModelSettings
from streamliner.text.calibration import SEQUENCE_LENGTH
from streamliner.types import ModelLike, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Session:
    """A model in use. `open_model` makes one."""

    source: ModelSource
    config: PretrainedConfig  # of the whole model
    settings: ModelSettings = field(default_factory=ModelSettings)
    ranks: Ranks = field(default_factory=Ranks)
    blocks: Blocks | None = None  # of the loaded model
    model: PreTrainedModel | None = None  # the user's own, if it is one in memory: not moved, changed or released
    given_tokenizer: PreTrainedTokenizerBase | None = None  # the user's own; None for the one next to the weights

    @classmethod
    def of(cls, model: PreTrainedModel, *, name: str = "", tokenizer: PreTrainedTokenizerBase | None = None) -> Self:
        """The session of a model in memory; its `name` is by default the name or path that it was loaded from."""
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            hint = "Pass a PreTrainedModel, a hub id, a folder or a GGUF file."
            raise ModelError(f"A model of transformers is needed, not {type(model).__name__}.", hint)
        name = name or model.config.name_or_path or type(model).__name__
        if model.training:
            raise ModelError(f"{name} is in training mode, in which dropout changes its outputs.", "Call model.eval().")
        device = "auto" if is_spread(model) else str(model.device)
        source, settings = ModelSource(name, "memory"), ModelSettings(device=device)
        return cls(source, model.config, settings, find_ranks(device), model=model, given_tokenizer=tokenizer)

    @cached_property
    def shell(self) -> PreTrainedModel:
        """The model without its weights; quantised weights count as the dense ones that they stand for."""
        config = copy.deepcopy(self.config)
        vars(config).pop("quantization_config", None)
        cls = auto_class(config) if self.model is None else type(self.model)
        options = {"trust_remote_code": self.source.trust_remote_code} if hasattr(cls, "from_config") else {}
        shell: PreTrainedModel = explained(self.source, lambda: make_shell(cls, config, **options))
        check_gguf_tensors(self.source, shell)
        return shell

    @cached_property
    def stack(self) -> Stack:
        """Where the model keeps its blocks; found in the shell."""
        return find_stack(self.shell)

    @property
    def num_blocks(self) -> int:
        """Blocks of the model."""
        return len(self.stack)

    @property
    def identity(self) -> dict[str, Any]:
        """The model without its weights: a plan is for all models of one type and shape, also fine-tuned ones."""
        keys = ("model_type", "hidden_size", "vocab_size")
        return {"name": self.source.name} | {key: getattr(self.stack.config, key, None) for key in keys}

    @property
    def parent(self) -> dict[str, Any]:
        """What a plan says of the model: its identity, and in what its weights are stored."""
        return self.identity | {"precision": precision(self.source, self.config)}

    @property
    def parameters(self) -> int:
        """Parameters of the model, shared ones once."""
        return count_parameters(self.shell)

    def describe(self) -> dict[str, Any]:
        """The model's name and size and how streamliner cut it, as a JSON value.

        `method` is that of the plan, followed by ", healed" if the model was healed. For a model that streamliner did
        not cut, `method` and `parent` are "" and `removed` is empty.
        """
        held = getattr(self.model, PLAN_ATTRIBUTE, None)
        here = Path(self.source.path) / self.source.gguf_file if self.source.path else None
        plan = held.to_json() if held else (read_mark(here) if here else None) or {}
        return {
            "model": self.source.name,
            "blocks": self.num_blocks,
            "parameters": self.parameters,
            "method": plan.get("method", "") + (", healed" if "healing" in plan else ""),
            "removed": list(plan.get("removed", [])),
            "parent": plan.get("model", {}).get("name", ""),
        }

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The user's own, otherwise the one next to the weights; a ModelError if there is none."""
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        if self.model is not None:
            raise ModelError(f"{self.source.name} is a model in memory without a tokenizer.", "Pass tokenizer=...")
        return load_tokenizer(self.source)

    @property
    def context(self) -> int:
        """Tokens that the model can read at most; `sys.maxsize` where its config does not say."""
        return getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None) or sys.maxsize

    @property
    def is_slow(self) -> bool:
        """Whether the model runs without a GPU, so that defaults are smaller than the papers'."""
        return is_slow(self.settings.device)

    def window_length(self, asked: int | None = None, flag: str = "--sequence-length") -> int:
        """Tokens of a window: `asked`, otherwise 2048 as in SLEB or the model's limit; a TextError names `flag`."""
        length = asked or min(SEQUENCE_LENGTH, self.context)
        if length > self.context:
            limit = f"the {self.context} positions of {self.source.name}"
            raise TextError(f"{flag} {length} is more than {limit}.", f"Use {self.context} or less.")
        return length

    def device_map(self, shell: Any) -> dict[str, str] | str | None:
        """Where the parts of the model, or of its cut `shell`, go; None if all go to one device."""
        if self.settings.offload:
            return offload_map(shell, self.stack.path, self.settings.offload, self.settings.device)
        return "auto" if self.settings.device == "auto" else None

    def choose_precision(self, reporter: Reporter, *, known: str | None = None) -> None:
        """Decide, unless `--dtype` did, in which precision losses are measured: the one in which this device is fast.

        Weights of a GGUF file are quantised anyway, so float32 and bfloat16 are both good for them. A checkpoint in
        half precision is loaded in float32 where products are faster in that and memory is plenty, never the other
        way round. `known` is the `dtype` of a run that continues: its losses must be comparable.
        """
        quantised = bool(quantised_by(self.config))
        if self.settings.dtype != "auto" or self.model is not None or self.blocks is not None or quantised:
            return
        if known is None:
            stored = torch.float32 if self.source.kind == "gguf" else getattr(self.config, "dtype", None)
            known, ratio = self._faster_than(stored) if stored in (torch.float32, *HALVES) else ("auto", 1.0)
            if known != "auto":
                own = str(stored).removeprefix("torch.")
                found = f"matrix products here are {ratio:.1f} times as fast as in {own}"
                reporter.say(f"Measuring in {known}: {found} (for {own}: --dtype {own}).")
        self.settings = replace(self.settings, dtype=known)

    def _faster_than(self, stored: torch.dtype) -> tuple[str, float]:
        """A `dtype` for weights that are stored in another one, and how many times as fast it is here."""
        if self.settings.device == "auto" or self.settings.offload:
            return "auto", 1.0
        device = torch.device(self.settings.device) if self.settings.device else best_device()
        faster = faster_precision(stored, device)
        ratio = self.ranks.of_first(faster[1] if faster else 1.0)  # the processes must agree
        if self.source.kind == "gguf":
            return ("bfloat16", ratio) if ratio >= WORTH_IT else ("auto", 1.0)
        known = free_and_total(device)
        plenty = known is not None and 4 * self.parameters < known[1] / 4
        return ("float32", ratio) if stored in HALVES and ratio >= WORTH_IT and plenty else ("auto", 1.0)

    def load(self, reporter: Reporter | None = None, *, device: str | None = None) -> Blocks:
        """The blocks of the model, which is loaded by the first call, to `device` or as the settings say."""
        if self.blocks is None and self.model is not None:
            self.blocks = Blocks(self.model)
        if self.blocks is not None:
            return self.blocks
        reporter, settings = reporter or Reporter(quiet=True), self.settings
        shadows = self.source.kind == "folder" and HUB_ID.fullmatch(self.source.name) and "/" in self.source.name
        which = ": the folder here, not the model of that name on the hub" if shadows else ""
        reporter.say(f"Loading {self.source.name}{which} ...")
        device = device or settings.device or (str(self.ranks.device) if self.ranks.size > 1 else None)
        placed = self.device_map(self.shell) if settings.offload else None
        with enough_memory(f"loading {self.source.name}", "--dtype bfloat16, --offload disk, or a larger machine"):
            self.blocks = Blocks(load_model(self.source, dtype=settings.dtype, device=device, device_map=placed))
        dtype, place = self.blocks.dtype, self.blocks.device
        reporter.say(f"{len(self.blocks)} blocks in {self.blocks.path}, {dtype} on {place}.")
        faster = faster_precision(dtype, place)
        if faster:
            name = str(faster[0]).removeprefix("torch.")
            reporter.say(f"Tip: matrix products are {faster[1]:.1f}x faster here in {name}: --dtype {name}.")
        return self.blocks

    def release(self) -> None:
        """Free the memory of the loaded model, unless it is the user's own."""
        if self.model is None and self.blocks is not None:
            model = weakref.ref(self.blocks.model)
            self.blocks = None
            release_memory(model)


def open_model(
    model: str | Path | PreTrainedModel | Session,
    settings: ModelSettings | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Session:
    """Find a model and read its config, but no weights. A session is returned as it is.

    Args:
        settings: how to load it; they have no meaning for a model in memory.
        tokenizer: used in place of the one next to the weights.

    Raises:
        ModelError: there is no such model, or it is in training mode, or the settings contradict each other.
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
        raise ModelError(f"--offload needs safetensors files: {source.name} is a GGUF file.", "Leave out --offload.")
    if settings.offload == "cpu" and torch.device(settings.device or best_device()).type == "cpu":
        raise ModelError("--offload cpu keeps weights for a GPU: the model runs on the CPU.", "Use --offload disk.")


def checkpoint_bytes(session: Session) -> int | None:
    """Size of the weight files, or of the weights in memory; None for a hub model that is not downloaded."""
    source = session.source
    if source.kind == "gguf":
        return sum(file.stat().st_size for file in source.gguf_files)
    if session.model is not None:
        return weight_bytes(session.model)
    return weight_file_bytes(Path(source.path)) if source.kind == "folder" else None


def open_models(
    models: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
    dense: ModelLike | None,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: ModelSettings | None,
) -> list[Session]:
    """Open the models to compare, each once, the dense one first; an EvaluationError if there is no other.

    A mapping names models in results; `tokenizer` is of models in memory, `settings` are for the others.
    """
    if isinstance(models, str) or not isinstance(models, (Mapping, Sequence)):
        models = [models]
    named = list(models.items()) if isinstance(models, Mapping) else [("", model) for model in models]
    opened: dict[str | int, Session] = {}
    for name, model in named if dense is None else [("", dense), *named]:
        if not isinstance(model, (str, Path)):
            opened.setdefault(id(model), Session.of(model, name=name, tokenizer=tokenizer))
        elif (path := str(model).rstrip("/") or "/") not in opened:
            opened[path] = open_model(path, settings)
    sessions = list(opened.values())
    if dense is not None and len(sessions) == 1:
        name = sessions[0].source.name
        raise EvaluationError(f"There is nothing to compare with the dense model {name}.", "Name a cut model.")
    taken = {session.source.name for session in sessions if session.model is None}
    for session in sessions:
        if session.model is not None:  # results know models by name, and a cut model has its parent's
            name = session.source.name
            names = (name, *(f"{name} ({number})" for number in range(2, len(sessions) + 1)))
            session.source = replace(session.source, name=next(each for each in names if each not in taken))
            taken.add(session.source.name)
    return sessions
