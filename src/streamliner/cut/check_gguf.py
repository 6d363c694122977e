"""Find out what is wrong with a GGUF file, whoever wrote it, and what it should be instead.

As for folders (`check_folder.py`): from its dense model, or from what the numbers of the blocks say.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamliner.cut.checkpoint import find_prefix
from streamliner.cut.config_file import config_differences
from streamliner.cut.faults import NEEDS_DENSE, Checkup, Fault, numbered_with_holes
from streamliner.cut.gguf import BLOCK, KeptTensor, prepare_gguf, with_other_head
from streamliner.cut.gguf_keys import PATTERN, RULES, assumed_pattern, cut_keys, pattern_note
from streamliner.cut.kept_blocks import (
    SAMPLE_BYTES,
    folder_blocks,
    gguf_blocks,
    match_blocks,
    match_vectors,
    removed_blocks,
)
from streamliner.cut.rules import Removal
from streamliner.cut.safetensors_file import read_checkpoint
from streamliner.cut.structure import Structure
from streamliner.errors import UserError
from streamliner.model.compat import gguf_names
from streamliner.model.gguf_header import check_whole, read_header
from streamliner.model.load import load_config
from streamliner.model.session import Session, open_model
from streamliner.model.source import ModelSource, checkpoint_folder

IT_IS_SET = "sets it."
SHOWN = 100


def check_gguf_file(file: Path, dense: Session | None = None) -> Checkup:
    """What is wrong with a GGUF file, and what it should be; with `dense`, a GGUF file or a folder, as one cut from it.

    A UserError if the dense model cannot be read. What is wrong with `file` itself never raises.
    """
    source = ModelSource(str(file), "gguf", str(file.parent), file.name)
    try:
        files = source.gguf_files
        for each in files:
            check_whole(each)
    except UserError as error:
        return Checkup((Fault(str(file), str(error.args[0])),))
    return _Examination(source, files, dense).checkup()


class _Examination:
    """The comparison of a GGUF file with what it should be."""

    def __init__(self, source: ModelSource, files: Sequence[Path], dense: Session | None) -> None:
        self.source, self.files, self.dense = source, files, dense
        self.header = read_header(files[0])
        self.faults = list[Fault]()
        self.blocks = gguf_blocks(files)
        self.indices = tuple(sorted(self.blocks))
        self.count = self.header.own("block_count")
        numbers = {old: new for new, old in enumerate(self.indices)}
        self.tensors: dict[str, KeptTensor] = {}
        for each in files:
            for name, place in read_header(each).places.items():
                match = BLOCK.match(name)
                new = f"blk.{numbers[int(match[1])]}.{name[match.end() :]}" if match else name
                self.tensors[new] = KeptTensor(new, name, each, place)
        self.changed: dict[str, Any] = {}
        self.trained = list[str]()

    def checkup(self) -> Checkup:
        """All that is wrong."""
        if type(self.count) is not int or not self.indices:
            self.faults.append(
                Fault(f"{self.header.architecture}.block_count", "It is missing, or there are no blocks.")
            )
            return Checkup(tuple(self.faults))
        self.faults += numbered_with_holes("blk.*", self.indices)
        try:
            removed, num_blocks = self._by_values() if self.dense else self._by_numbers()
        except UserError as error:
            return Checkup((*self.faults, Fault(str(self.files[0]), str(error.args[0]))))
        unchecked = ""
        if not self.dense or self.dense.source.kind != "gguf":
            unchecked = self._check_tensors(removed)
        mended = None
        if self.faults and all(fault.mend for fault in self.faults):
            mended = with_other_head(self.files[0], self.header, list(self.tensors.values()), self.changed)
        return Checkup(tuple(self.faults), removed, num_blocks, mended, tuple(self.trained), unchecked)

    def _by_numbers(self) -> tuple[tuple[int, ...] | None, int]:
        """Which blocks were removed, as far as the file itself says it, and of how many."""
        name, found = f"{self.header.architecture}.block_count", len(self.indices)
        # Blocks that predict several tokens are counted too.
        lists = {key: len(value) for key, value in self._block_lists().items()}
        wrong = {key: length for key, length in lists.items() if length != self.count}
        before = next(iter(wrong.values())) if wrong and len(set(lists.values())) == 1 else self.count
        if note := pattern_note(self.header):
            self.faults.append(Fault(f"{self.header.architecture}.{PATTERN}", f"{note} {NEEDS_DENSE}"))
        if found == before == self.count:
            return (), before
        what = f"It is {self.count}, but the file has {found} blocks."
        holes = self.indices[-1] < before and self.indices != tuple(range(found))
        if found < before and (holes or self._equal_blocks()):
            removed = tuple(sorted(set(range(before)) - set(self.indices)))
            keys = self._after(Removal.of(removed, before))
            if keys is None:
                return removed, before
            self._set(keys)
            return removed, before
        if found == before or self._equal_blocks():  # block_count alone is wrong
            self._set({name: found})
            return (), found
        self.faults.append(Fault(name, f"{what} {NEEDS_DENSE if found < before else ''}".strip()))
        for key, length in wrong.items():
            self.faults.append(Fault(key, f"It has {length} entries, but the file has {found} blocks. {NEEDS_DENSE}"))
        return None, before

    def _by_values(self) -> tuple[tuple[int, ...] | None, int]:
        """Which blocks of the dense model the file has, by the values of tensors."""
        dense = self.dense
        assert dense is not None
        structure, blocks = Structure(dense.shell), [self.blocks[index] for index in self.indices]
        count, own = len(structure), dense.source.kind == "gguf"
        if own:
            known = gguf_blocks(dense.source.gguf_files)
            found = match_blocks([known[index] for index in range(count)], blocks)
        else:
            files = read_checkpoint(checkpoint_folder(dense.source))
            known = folder_blocks(files, find_prefix([name for file in files for name in file.tensors], structure))
            found = match_vectors([known[index] for index in range(count)], blocks)
        removed = removed_blocks(found[:count], count)
        if own:
            self._compare_with_file(dense, structure, removed)
        else:
            self._compare_with_config(structure, removed)
        return removed, count

    def _compare_with_file(self, dense: Session, structure: Structure, removed: tuple[int, ...]) -> None:
        """Keys and tensors with those of the dense GGUF file, cut; what is missing is taken from it."""
        files = dense.source.gguf_files
        known, architecture = read_header(files[0]), self.header.architecture
        if removed:
            cut = prepare_gguf(files, structure, removed)
            wanted, tensors = known.keys | cut.changed, {tensor.name: tensor for tensor in cut.tensors}
        else:
            wanted = known.keys
            tensors = {
                name: KeptTensor(name, name, file, place)
                for file in files
                for name, place in read_header(file).places.items()
            }
        own = {key: value for key, value in wanted.items() if key.startswith(f"{architecture}.")}
        self._set({key: value for key, value in own.items() if self.header.keys.get(key) != value})
        for name, tensor in tensors.items():
            found = self.tensors.get(name)
            if found is None or found.place.shape != tensor.place.shape:
                what = (
                    "It is missing."
                    if found is None
                    else f"Its shape is {list(found.place.shape)}, and {list(tensor.place.shape)} in the dense file."
                )
                self.tensors[name] = tensor
                self.faults.append(Fault(name, what, "copies it from the dense file."))
            elif found.place.kind == tensor.place.kind and not found.begins_as(tensor, SAMPLE_BYTES):
                self.trained.append(name)

    def _compare_with_config(self, structure: Structure, removed: tuple[int, ...]) -> None:
        """Keys with the config of the dense folder, cut, as transformers reads them."""
        count, kept = len(structure), Removal.of(removed, len(structure)).kept
        keys: dict[str, Any] = {f"{self.header.architecture}.block_count": len(kept)}
        for key, value in self._block_lists().items():
            if len(value) == count and removed:
                keys[key] = [value[index] for index in kept]
        kinds = getattr(structure.stack.config, "layer_types", None)
        assumed = assumed_pattern(self.header, len(kept))
        if isinstance(kinds, list) and assumed is not None:
            pattern = ["sliding" in kinds[index] for index in kept]
            if pattern != assumed:
                keys[f"{self.header.architecture}.{PATTERN}"] = pattern
        self._set({key: value for key, value in keys.items() if self.header.keys.get(key) != value})
        if not self.faults:
            for key, (found, right) in config_differences(load_config(self.source), structure, removed).items():
                if key in ("num_hidden_layers", "layer_types", "num_kv_shared_layers"):
                    self.faults.append(
                        Fault(str(self.files[0]), f"It is read with {key} = {found}, but it must be {right}.")
                    )

    def _check_tensors(self, removed: tuple[int, ...] | None) -> str:
        """Whether each tensor is there that transformers would load, as large as it must be; if unknown, the reason."""
        if removed is None:
            return "It is not known which blocks were removed."
        try:
            structure = Structure((self.dense or open_model(self.files[0])).shell)
            shell = structure.cut_shell(removed) if removed else structure.shell
            names = gguf_names(self.header.architecture, shell)
        except UserError as error:
            return f"transformers cannot read the file: {error.args[0]}"
        shapes = {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items()}
        for name in sorted(names):
            found, wanted = self.tensors.get(name), shapes.get(names[name], ())
            if found is None and name != "output.weight":  # without it the embeddings are the head
                self.faults.append(Fault(name, "It is missing."))
            matrix = found is not None and len(wanted) == 2 == len(found.place.shape)
            if found is not None and matrix and sorted(found.place.shape) != sorted(wanted):
                what = f"Its shape is {list(found.place.shape)}, but must be {list(wanted[::-1])}."
                self.faults.append(Fault(name, what))
        return "" if names else f"transformers does not say which tensors a file of {self.header.architecture} has."

    def _block_lists(self) -> dict[str, list[Any]]:
        """Keys of the architecture whose values are lists with an entry for each block, here or in the dense file."""
        own = {key: value for key, value in self.header.keys.items() if key.startswith(f"{self.header.architecture}.")}
        lists = {
            key: value for key, value in own.items() if isinstance(value, list) and key.partition(".")[2] not in RULES
        }
        return {key: value for key, value in lists.items() if len(value) >= min(self.count, len(self.indices))}

    def _equal_blocks(self) -> bool:
        """Whether no key says that blocks differ."""
        lists = self._block_lists().values()
        special = [key for key in RULES if self.header.own(key) not in (None, 0, [])]
        windows = assumed_pattern(self.header, len(self.indices)) is not None
        return not windows and not special and all(len({str(each) for each in value}) == 1 for value in lists)

    def _after(self, removal: Removal) -> dict[str, Any] | None:
        """The keys as they must be after the removal; None, with a fault, if no key can say it."""
        try:
            return cut_keys(self.header, removal)
        except UserError as error:
            self.faults.append(Fault(str(self.files[0]), str(error.args[0])))
            return None

    def _set(self, keys: Mapping[str, Any]) -> None:
        """Report and mend keys with other values than these."""
        for key, right in keys.items():
            found = self.header.keys.get(key)
            shown = [text if len(text) <= SHOWN else text[:SHOWN] + " ..." for text in map(str, (found, right))]
            what = (
                f"It is {shown[0]}, but must be {shown[1]}."
                if found is not None
                else f"It is missing, and must be {shown[1]}."
            )
            self.faults.append(Fault(key, what, IT_IS_SET))
            self.changed[key] = right
