"""Find out what is wrong with the config of a checkpoint that some blocks of the dense model are missing from."""

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from streamliner.cut.config import as_json, cut_config, cut_config_object, cut_outer_config, with_legacy_rope
from streamliner.cut.config_file import config_differences, follow_pattern, part_of_file, write_config
from streamliner.cut.faults import Fault
from streamliner.cut.quantised import ModuleNames, renamed_modules
from streamliner.cut.rules import FIELDS, Removal, per_block
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError, UserError
from streamliner.model.session import open_model
from streamliner.model.stack import COUNTS, DECODER_COUNTS, config_path
from streamliner.settings import ModelSettings

IT_IS_SET = "sets it."
OF_THE_TEXT = re.compile(r"vocab_size|.*_token_id|.*_token_index")
"""Fields that may differ from those of the dense model, as words may have been added since."""
LONGEST = 120


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was made of, as far as that is known."""

    structure: Structure  # of the dense model
    removed: tuple[int, ...] | None  # None if it is not known
    prefix: str  # where the blocks are in the files
    indices: tuple[int, ...]  # their numbers there
    faults: tuple[Fault, ...]


def own_structure(
    folder: Path, content: dict[str, Any], *, trust_remote_code: bool = False
) -> tuple[Structure, int, list[Fault]]:
    """The structure that a config asks for, the number of blocks that it says, and what contradicts that in it.

    Where all its lists have entries for more or fewer blocks than it says, the structure is of that many blocks. A
    UserError if transformers cannot make a model of it.
    """
    changed, faults, said = copy.deepcopy(content), list[Fault](), 0
    for part in [changed, *(value for value in changed.values() if isinstance(value, dict))]:
        names = [key for key in (*DECODER_COUNTS, *COUNTS) if type(part.get(key)) is int][:1]
        lists = {key: len(value) for key, value in part.items() if FIELDS.get(key) is per_block and type(value) is list}
        ahead = sum(value for key, value in part.items() if "nextn" in key or "mtp" in key if type(value) is int)
        wrong = {
            key: length
            for key, length in lists.items()
            if names and length not in (part[names[0]], part[names[0]] + ahead)
        }
        if wrong and len(set(lists.values())) == 1:
            said, length = part[names[0]], next(iter(wrong.values()))
            faults += [
                Fault(f"config.json: {key}", f"It has {length} entries for {said} blocks.", IT_IS_SET) for key in wrong
            ]
            part[names[0]] = length
    structure = _structure(folder, changed, trust_remote_code)
    return structure, said or len(structure), faults


def _structure(folder: Path, content: dict[str, Any], trust_remote_code: bool) -> Structure:
    with tempfile.TemporaryDirectory() as place:
        for file in folder.glob("*.py"):  # a model's own code, run only if it is trusted
            shutil.copyfile(file, Path(place) / file.name)
        write_config(Path(place) / "config.json", content)
        try:
            return Structure(open_model(place, ModelSettings(trust_remote_code=trust_remote_code)).shell)
        except UserError as error:
            raise type(error)(str(error.args[0]).replace(place, str(folder)), error.hint) from error


def equal_blocks(structure: Structure) -> bool:
    """Whether it makes no difference to the config, or to any block, which blocks are removed."""
    stack, dense = structure.stack, structure.stack.config.to_dict()
    if len(set(structure.kinds())) > 1 or len(structure) < 2:
        return False
    try:
        cut = {as_json(cut_config(dense, (index,), len(stack), stack.count_name)) for index in range(len(stack))}
    except UnsupportedModelError:
        return False
    return len(cut) == 1


def mended_config(
    content: dict[str, Any], origin: Origin, tensors: Collection[str], *, trust_remote_code: bool = False
) -> tuple[dict[str, Any], list[Fault]]:
    """The config.json as it must be, and what is wrong with `content`, the one that is there.

    `tensors` are names on disk in which blocks have the numbers of the dense model.
    """
    structure, removed = origin.structure, origin.removed or ()
    stack, config = structure.stack, cast(Any, structure.shell).config
    wanted: Any = cut_config_object(config, stack, removed) if removed else config
    path = config_path(config, stack.config) or ()
    mended, faults = copy.deepcopy(content), list[Fault]()
    complete = _part(wanted, path)
    part = part_of_file(mended, path, complete, stack)
    for key, (found, right) in _differences(content, part, structure, removed).items():
        faults.append(_wrong(key, found, right))
        part[key] = right
        for alias, name in type(stack.config).attribute_map.items():
            if name == key and alias in part:
                part[alias] = right
    for key, value in list(part.items()) if removed else ():
        for_another_engine = key not in complete and FIELDS.get(key) is per_block and isinstance(value, list)
        if for_another_engine and len(value) == len(structure):
            part[key] = per_block(key, value, Removal.of(removed, len(structure)))
            faults.append(_wrong(key, value, part[key]))
    if path and removed:
        for key, right in cut_outer_config(config.to_dict(), removed, len(structure)).items():
            if mended.get(key) != right:
                faults.append(_wrong(key, mended.get(key), right))
                mended[key] = right
    if faults:
        part |= with_legacy_rope(part)
    before = copy.deepcopy(part)
    follow_pattern(part, part)
    faults += [_wrong(key, value, part.get(key)) for key, value in before.items() if part.get(key) != value]
    faults += _mend_quantisation(mended, part, origin, tensors)
    return mended, faults


def _differences(
    content: dict[str, Any], part: dict[str, Any], structure: Structure, removed: tuple[int, ...]
) -> dict[str, tuple[Any, Any]]:
    """Field -> (what it is, what it must be). If the config cannot be read, of the fields that depend on blocks."""
    config: Any = structure.shell.config
    with tempfile.TemporaryDirectory() as place:
        write_config(Path(place) / "config.json", content)
        try:
            found: Any = type(config).from_pretrained(place, local_files_only=True)
        except Exception:  # validators raise errors of their own types
            dense = structure.stack.config.to_dict()
            wanted = cut_config(dense, removed, len(structure), structure.stack.count_name) if removed else dense
            keys = [
                key for key in wanted if wanted[key] != dense[key] or key in (*COUNTS, *DECODER_COUNTS) or key in FIELDS
            ]
            return {key: (part[key], wanted[key]) for key in keys if key in part and part[key] != wanted[key]}
    different = config_differences(found, structure, removed)
    return {key: values for key, values in different.items() if not OF_THE_TEXT.fullmatch(key)}


def _mend_quantisation(
    mended: dict[str, Any], part: dict[str, Any], origin: Origin, tensors: Collection[str]
) -> list[Fault]:
    """Names of modules in the settings of quantisation that are those of blocks which are not there."""
    count, faults = len(origin.structure) - len(origin.removed or ()), list[Fault]()
    names = ModuleNames(
        tensors, (origin.structure.stack.path, origin.prefix), Removal.of(origin.removed or (), len(origin.structure))
    )
    for where in (mended,) if part is mended else (mended, part):
        text = json.dumps(where.get("quantization_config"))
        number = rf"(?:{re.escape(origin.prefix)}|{re.escape(origin.structure.stack.path)})\.(\d+)\b"
        stale = sorted({int(each) for each in re.findall(number, text)} - set(range(count)))
        if stale:
            what = f"It names modules of block {stale[0]}, and there are {count} blocks."
            where["quantization_config"] = renamed_modules(where["quantization_config"], names)
            faults.append(
                Fault("config.json: quantization_config", what, "gives them the new numbers of their blocks.")
            )
    return faults


def _part(config: Any, path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        config = getattr(config, name)
    result: dict[str, Any] = config.to_dict()
    return result


def _wrong(key: str, found: Any, right: Any) -> Fault:
    where = f"config.json: {key}"
    if right is None:
        return Fault(where, f"It is {json.dumps(found)}, and the list of kinds says otherwise.", "leaves it out.")
    if isinstance(found, list) and isinstance(right, list) and len(found) != len(right):
        return Fault(where, f"It has {len(found)} entries, and must have {len(right)}.", IT_IS_SET)
    shown = (json.dumps(value, default=str) for value in (found, right))
    what = ", and must be ".join(text if len(text) <= LONGEST else text[:LONGEST] + " ..." for text in shown)
    return Fault(where, f"It is {what}.", IT_IS_SET)
