"""Find out what is wrong with a checkpoint folder, whoever wrote it, and what it should be instead.

What it should be is known from its dense model. Without that, numbers of blocks with holes show which were removed, and
in a model of equal blocks it makes no difference. Only headers, and the beginnings of tensors, are read.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamliner.cut.check_config import Origin, equal_blocks, mended_config, own_structure
from streamliner.cut.checkpoint import CheckpointCut, find_prefix, in_shards
from streamliner.cut.faults import NEEDS_DENSE, Checkup, Fault, numbered_with_holes
from streamliner.cut.kept_blocks import SAMPLE_BYTES, folder_blocks, match_blocks, removed_blocks
from streamliner.cut.names import renamed_tensors
from streamliner.cut.quantised import renamed_metadata
from streamliner.cut.rules import FIELDS, Removal, none_left
from streamliner.cut.safetensors_file import NewTensor, TensorFile, read_checkpoint, read_file
from streamliner.cut.structure import Structure
from streamliner.errors import ModelError, UserError
from streamliner.model.fit import fit
from streamliner.model.parts import modules_with_parameters, tied_head
from streamliner.model.precision import quantised_by
from streamliner.model.session import Session
from streamliner.model.source import INDEX_FILE, checkpoint_folder, read_index

SHARDS = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint as transformers would load them."""

    files: list[TensorFile]
    faults: tuple[Fault, ...]
    others: tuple[str, ...] = ()  # files with weights that are not loaded, and are not for another program

    @property
    def file_of(self) -> dict[str, TensorFile]:
        """The file of each tensor."""
        return {name: file for file in self.files for name in file.tensors}


def check_folder(folder: Path, dense: Session | None = None, *, trust_remote_code: bool = False) -> Checkup:
    """What is wrong with the checkpoint in `folder`, and what it should be; with `dense` as a model cut from that.

    A UserError if the dense model cannot be read, or is no folder of safetensors files. What is wrong with `folder`
    itself never raises.
    """
    source = None if dense is None else read_checkpoint(checkpoint_folder(dense.source))
    try:
        weights = _read_weights(folder)
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ModelError(f"{folder / 'config.json'} is not a JSON object.")
    except (ModelError, ValueError, OSError) as error:
        return Checkup((Fault(str(folder), _reason(error)),))
    try:
        if dense is None or source is None:
            origin = _by_numbers(folder, content, weights, trust_remote_code)
        else:
            origin = _by_values(weights, Structure(dense.shell), source)
    except UserError as error:
        if "Python code" in str(error.args[0]):
            raise  # it can be looked at with --trust-remote-code
        return Checkup((*weights.faults, Fault(str(folder), _reason(error))))
    other_format = dense is not None and bool(quantised_by(dense.config)) != ("quantization_config" in content)
    return _Examination(folder, content, weights, origin, source, other_format=other_format).checkup()


class _Examination:
    """The comparison of a checkpoint with what it should be."""

    def __init__(
        self,
        folder: Path,
        content: dict[str, Any],
        weights: Weights,
        origin: Origin,
        dense: list[TensorFile] | None,
        *,
        other_format: bool,
    ) -> None:
        self.folder, self.content, self.weights, self.origin = folder, content, weights, origin
        self.other_format = other_format  # quantised and the dense model is not, or the other way round
        self.dense = {name: file for file in dense or () for name in file.tensors}
        self.faults = [*weights.faults, *origin.faults]
        self.trained: list[str] = []
        pattern = re.compile(re.escape(origin.prefix) + r"\.(\d+)\.")
        numbers = {old: new for new, old in enumerate(origin.indices)}
        self.tensors: dict[str, NewTensor] = {}
        there = Removal(origin.indices, max(origin.indices) + 1)
        for file in weights.files:
            metadata = renamed_metadata(file.metadata, origin.prefix, there)
            described = replace(file, metadata=metadata, other_metadata=metadata != file.metadata)
            for name in file.tensors:
                match = pattern.match(name)
                new = numbers.get(int(match[1]), int(match[1])) if match else 0
                moved = f"{origin.prefix}.{new}.{name[match.end() :]}" if match else name
                self.tensors[moved] = described.unchanged(name)

    def checkup(self) -> Checkup:
        """All that is wrong."""
        origin, structure = self.origin, self.origin.structure
        config = None
        if origin.removed is not None:
            if reason := structure.refusal(origin.removed) if origin.removed else "":
                self.faults.append(Fault("config.json", f"These blocks together are not a valid model: {reason}"))
                return Checkup(tuple(self.faults), origin.removed, len(structure))
            self._compare_with_dense(origin.removed)
            config, faults = mended_config(self.content, origin, self.dense or self.weights.file_of)
            self.faults += faults
            self._check_head(config)
            self._check_fit(config)
        mended = None
        if self.faults and config is not None and all(fault.mend for fault in self.faults):
            mended = self._mended(config)
        return Checkup(tuple(self.faults), origin.removed, len(structure), mended, tuple(self.trained))

    def _compare_with_dense(self, removed: tuple[int, ...]) -> None:
        """Names, shapes and beginnings of tensors with those of the dense model; what is missing is taken from it."""
        structure, prefix = self.origin.structure, self.origin.prefix
        if not self.dense or self.other_format or find_prefix(self.dense, structure) != prefix:
            return  # other names on disk: what is missing shows when it is loaded
        removal = Removal.of(removed, len(structure))
        for name, old in renamed_tensors(self.dense, prefix, removal, structure.shared_with_kept(removed)).items():
            wanted = self.dense[old].unchanged(old)
            found = self.tensors.get(name)
            if found is None:
                self._take(name, wanted, "It is missing.")
            elif found.shape != wanted.shape and found.dtype == wanted.dtype:
                shapes = f"Its shape is {list(found.shape)}, and {list(wanted.shape)} in the dense model."
                self._take(name, wanted, shapes)
            elif found.dtype == wanted.dtype and not found.has_bytes_of(wanted, SAMPLE_BYTES):
                self.trained.append(name)

    def _take(self, name: str, wanted: NewTensor, what: str) -> None:
        self.tensors[name] = wanted
        self.faults.append(Fault(name, what, "copies it from the dense model."))

    def _check_head(self, config: dict[str, Any]) -> None:
        """A head of its own beside a config that says it has none: some programs would take the embeddings for it."""
        tied = tied_head(self.origin.structure.shell)
        if tied and all(name in self.tensors for name in tied):
            head, embeddings = (self.tensors[name] for name in tied)
            if (head.shape, head.dtype) == (embeddings.shape, embeddings.dtype) and not head.has_bytes_of(embeddings):
                what = "It is true, but in the files the output head is not the same matrix as the embeddings."
                self.faults.append(Fault("config.json: tie_word_embeddings", what, "sets it to false."))
                config["tie_word_embeddings"] = False

    def _check_fit(self, config: dict[str, Any]) -> None:
        """Whether transformers finds each tensor that it needs, as large as it needs it."""
        structure, removed = self.origin.structure, self.origin.removed or ()
        shell = structure.cut_shell(removed) if removed else structure.shell
        found = None
        if not self.content.get("quantization_config"):
            own: Any = shell.config
            if config.get("tie_word_embeddings") is False:
                own.tie_word_embeddings = False
            found = fit(type(shell), own, {name: tensor.shape for name, tensor in self.tensors.items()})
        if found is None:
            self._check_modules()
            return
        for name in found.missing:
            self.faults.append(Fault(name, "It is missing: transformers would fill it with random numbers."))
        for name, (shape, wanted) in found.mismatched.items():
            self.faults.append(Fault(name, f"Its shape is {list(shape)}, but the config asks for {list(wanted)}."))
        blocks = re.compile(rf"{re.escape(structure.stack.path)}\.(\d+)\.")
        extra = [name for name in found.unexpected if (match := blocks.match(name)) and int(match[1]) < len(structure)]
        for name in [] if self.dense else self._odd_names(extra):
            self.faults.append(Fault(name, "The model has no place for it."))

    def _odd_names(self, names: list[str]) -> list[str]:
        """Those that are not the same in many blocks: buffers that old releases wrote are in all."""
        tails = Counter(re.sub(r"\.\d+\.", ".N.", name, count=1) for name in names)
        few = len(self.origin.indices) // 2
        return [name for name in names if tails[re.sub(r"\.\d+\.", ".N.", name, count=1)] <= few]

    def _check_modules(self) -> None:
        """Whether each module has some tensor: of formats that transformers cannot be asked about here.

        How many tensors stand for a weight differs from format to format, and within one if some are not converted.
        """
        structure, prefix = self.origin.structure, self.origin.prefix
        for new, old in enumerate(Removal.of(self.origin.removed or (), len(structure)).kept):
            for module in modules_with_parameters(structure.stack.modules[old]):
                name = f"{prefix}.{new}.{module}"
                if not any(each.startswith(f"{name}.") for each in self.tensors):
                    self.faults.append(Fault(name, "It has no tensor."))

    def _mended(self, config: dict[str, Any]) -> CheckpointCut:
        known = [*(file.path.name for file in self.weights.files), *self.weights.others]
        return in_shards(self.folder, {"config.json": config}, self.tensors, known)


def _by_values(weights: Weights, structure: Structure, dense: list[TensorFile]) -> Origin:
    """Which blocks of the dense model the checkpoint has, by the values of tensors."""
    prefix = find_prefix(weights.file_of, structure, 0)
    blocks = folder_blocks(weights.files, prefix)
    known = folder_blocks(dense, find_prefix([name for file in dense for name in file.tensors], structure))
    indices = tuple(sorted(blocks))
    matched = match_blocks([known[index] for index in range(len(structure))], [blocks[index] for index in indices])
    if None in matched[len(structure) :] or len(indices) > len(structure):
        indices, matched = indices[: len(structure)], matched[: len(structure)]
    removed = removed_blocks(matched, len(structure))
    return Origin(structure, removed, prefix, indices, tuple(numbered_with_holes(f"{prefix}.*", indices)))


def _by_numbers(folder: Path, content: dict[str, Any], weights: Weights, trusted: bool) -> Origin:
    """Which blocks were removed, as far as the config and the numbers of the blocks say it."""
    structure, said, faults = own_structure(folder, content, trust_remote_code=trusted)
    prefix, count = find_prefix(weights.file_of, structure, 0), len(structure)
    indices = tuple(sorted(folder_blocks(weights.files, prefix)))
    if any(FIELDS.get(key) is none_left and value for key, value in structure.stack.config.to_dict().items()):
        indices = tuple(index for index in indices if index < count)  # those behind predict several tokens
    removed: tuple[int, ...] | None = None
    if len(indices) == count:
        removed = ()
    elif indices[-1] < count and indices != tuple(range(len(indices))):
        removed = tuple(sorted(set(range(count)) - set(indices)))
    elif len(indices) < count and equal_blocks(structure):
        removed = tuple(range(len(indices), count))
    faults += numbered_with_holes(f"{prefix}.*", indices)
    if removed is None:
        what = (
            f"The config says {said} blocks, its lists {count}, and"
            if said != count
            else f"The config says {count} blocks, and"
        )
        hint = NEEDS_DENSE if len(indices) < count else f"Blocks from {count} on are never loaded."
        faults.append(Fault("config.json", f"{what} the files have {len(indices)}. {hint}"))
    return Origin(structure, removed, prefix, indices, tuple(faults))


def _read_weights(folder: Path) -> Weights:
    """The files with their tensors; a ModelError if one is broken or missing."""
    single, index = folder / "model.safetensors", folder / INDEX_FILE
    shards = sorted(path for path in folder.glob("*.safetensors") if SHARDS.fullmatch(path.name))
    if single.is_file():
        named = sorted(set(read_index(folder).values()) - {single.name}) if index.is_file() else []
        what = f"It names {len(named)} other files: some programs load these, others {single.name}."
        faults = (
            (Fault(INDEX_FILE, what, f"leaves them out; {single.name} is what transformers loads."),) if named else ()
        )
        return Weights([read_file(single)], faults, tuple(named))
    if index.is_file():
        weight_map = read_index(folder)
        files = [read_file(folder / name) for name in sorted(set(weight_map.values()))]
        return Weights(*_by_index(files, weight_map))
    if shards and all(int(match[1]) == len(shards) for path in shards if (match := SHARDS.fullmatch(path.name))):
        return Weights([read_file(path) for path in shards], (Fault(INDEX_FILE, "It is missing.", "writes it."),))
    raise ModelError(f"{folder} has neither model.safetensors nor {INDEX_FILE}.")


def _by_index(files: list[TensorFile], weight_map: Mapping[str, str]) -> tuple[list[TensorFile], tuple[Fault, ...]]:
    """The files without tensors that the index takes from another one that has them."""
    places = {
        name: [file.path.name for file in files if name in file.tensors] for file in files for name in file.tensors
    }
    lost = sorted(set(weight_map) - set(places))
    wrong = [name for name, found in places.items() if weight_map.get(name) not in found]
    faults = list[Fault]()
    if wrong or lost:
        what = [f"{len(wrong)} tensors are in other files than it says, such as {min(wrong)}."] if wrong else []
        what += [f"It names {len(lost)} tensors that no file has, such as {lost[0]}."] if lost else []
        faults = [Fault(INDEX_FILE, " ".join(what), "writes it again.")]
    kept = []
    for file in files:
        taken = {
            name
            for name, found in places.items()
            if len(found) > 1 and weight_map.get(name, found[0]) != file.path.name
        }
        kept.append(replace(file, tensors={name: each for name, each in file.tensors.items() if name not in taken}))
    return kept, tuple(faults)


def _reason(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, UserError) else f"It cannot be read: {error}"
