"""The JSON files of a cut checkpoint: the user's own, in which only the keys that must change are changed.

A config.json is not what its class would write: keys are missing where the class has a default, others are older names
or are for other engines. So the rules run on the complete config of the class, and what they change is carried over.
"""

import json
import tempfile
from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import Any

from streamliner.cut.config import cut_config, cut_config_object, cut_fields, cut_outer_config, with_legacy_rope
from streamliner.cut.quantised import QUANTIZATION_FILES, ModuleNames, renamed_modules
from streamliner.cut.rules import FIELDS, Removal, per_block
from streamliner.cut.structure import REPORT, Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.stack import COUNTS, DECODER_COUNTS, Stack, config_path

PATTERNS = ("sliding_window_pattern", "_sliding_window_pattern")
"""Periods of sliding and full attention, which say nothing where a config lists the kinds of blocks."""
NOT_COMPARED = (
    *PATTERNS,
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "_model_name_or_path",  # of a GGUF file, from its own name
    "quantization_config",
    "architectures",
)


def cut_config_files(
    folder: Path, structure: Structure, removed: tuple[int, ...], prefix: str, tensors: Collection[str]
) -> dict[str, Any]:
    """File name -> content for the cut model: config.json, and files of quantisation settings if there are any.

    `folder` is the dense checkpoint, `tensors` are the names in it, `prefix` where its blocks are. An
    UnsupportedModelError if a key cannot follow, or if the file would be read as a different config than intended.
    """
    removal, paths = Removal.of(removed, len(structure)), (structure.stack.path, prefix)
    names = ModuleNames(tensors, paths, removal)
    files = (folder / name for name in ("config.json", *QUANTIZATION_FILES))
    found = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()}
    config = _cut_config_json(found.pop("config.json"), structure, removed, names)
    return {"config.json": config} | {name: renamed_modules(value, names) for name, value in found.items()}


def write_config(file: Path, value: Any) -> None:
    """Write JSON as transformers does: infinity, a limit in Mamba's configs, stays as it is."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cut_config_json(
    content: dict[str, Any], structure: Structure, removed: tuple[int, ...], names: ModuleNames
) -> dict[str, Any]:
    """Change `content` to that of the cut model."""
    config: Any = structure.shell.config
    stack, removal = structure.stack, Removal.of(removed, len(structure))
    cut = cut_config(stack.config.to_dict(), removed, len(stack), stack.count_name)
    path = config_path(config, stack.config) or ()
    if path:
        content |= cut_outer_config(config.to_dict(), removed, len(stack))
    part = part_of_file(content, path, cut, stack)
    part |= _changed_fields(part, cut, stack, removal)
    part |= with_legacy_rope(part)
    follow_pattern(part, cut)
    for where in (content,) if part is content else (content, part):  # each once: numbers must not move twice
        if "quantization_config" in where:
            where["quantization_config"] = renamed_modules(where["quantization_config"], names)
    _check_read_back(content, structure, removed)
    return content


def follow_pattern(part: dict[str, Any], cut: dict[str, Any]) -> None:
    """Change or remove a period of sliding and full attention beside the list of kinds that says otherwise."""
    kinds = cut.get("layer_types")
    for key in PATTERNS:
        if isinstance(kinds, list) and type(part.get(key)) is int:
            full = [index + 1 for index, kind in enumerate(kinds) if kind == "full_attention"]
            period = full[0] if full else len(kinds) + 1
            if full == list(range(period, len(kinds) + 1, period)):
                part[key] = period
            else:
                del part[key]


def part_of_file(content: dict[str, Any], path: tuple[str, ...], cut: dict[str, Any], stack: Stack) -> dict[str, Any]:
    """The dict within the file that describes the stack. It is created where the file leaves it to the defaults."""
    part = content
    for name in path:
        if not isinstance(part.get(name), dict):
            if any(key in part for key in (*COUNTS, *DECODER_COUNTS, stack.count_name)):
                return part  # a file of an older release, which has the fields of the text at the top
            part[name] = cut if name == path[-1] else {}
        part = part[name]
    return part


def _changed_fields(part: dict[str, Any], cut: dict[str, Any], stack: Stack, removal: Removal) -> dict[str, Any]:
    """The fields that must change in `part` of the file; `cut` is the complete config of the cut model."""
    complete = stack.config.to_dict()
    aliases = {key: name for key, name in type(stack.config).attribute_map.items() if key not in complete}
    changed = {key: value for key, value in cut.items() if value != complete.get(key)}
    for key, value in part.items():
        if aliases.get(key) in complete:
            # A second name of the same field would take precedence over it on loading.
            if aliases[key] in changed:
                changed[key] = changed[aliases[key]]
        elif key not in complete:
            # The class drops the key: it is an older name, or is for another engine.
            if key != "quantization_config":
                changed |= cut_fields({key: value}, removal, stack.count_name)
        elif FIELDS.get(key) is per_block and isinstance(value, list) and isinstance(complete[key], list):
            # The file may name kinds of blocks differently than the class: other engines may know only these names.
            changed |= {key: per_block(key, value, removal)} if len(value) == len(complete[key]) else {}
    return changed


def _check_read_back(content: dict[str, Any], structure: Structure, removed: tuple[int, ...]) -> None:
    """The structure was checked with a config object; refuse a file that is not read as the same."""
    config: Any = structure.shell.config
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder) / "config.json", content)
        found: Any = type(config).from_pretrained(folder, local_files_only=True)
    if difference := config_difference(found, structure, removed):
        raise UnsupportedModelError(f"The cut config.json would be read with {difference}.", REPORT)


def config_difference(found: Any, structure: Structure, removed: tuple[int, ...]) -> str:
    """In what the config `found` is not that of the cut model, or ""."""
    for key, (value, wanted) in config_differences(found, structure, removed).items():
        return f"{key} = {value!r} instead of {wanted!r}"
    return ""


def config_differences(found: Any, structure: Structure, removed: tuple[int, ...]) -> dict[str, tuple[Any, Any]]:
    """Field -> (its value in the config `found`, that in the config of the cut model), where these differ."""
    config: Any = structure.shell.config
    wanted = cut_config_object(config, structure.stack, removed) if removed else config
    path = config_path(config, structure.stack.config) or ()
    parts = (reduce(getattr, path, each).to_dict() for each in (found, wanted))
    found, wanted = (_comparable(json.loads(json.dumps(part, default=str))) for part in parts)
    return {key: (found.get(key), wanted[key]) for key in sorted(wanted) if found.get(key) != wanted[key]}


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items() if key not in NOT_COMPARED}
    return value
