"""The JSON files of a cut checkpoint: the user's own, with only those keys changed that must be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from streamliner.cut.config import cut_around, cut_config, cut_fields, renumbered_names, with_legacy_rope
from streamliner.cut.rules import FIELDS, Removal, per_block
from streamliner.cut.structure import REPORT, Structure, config_path, cut_model_config
from streamliner.errors import UnsupportedModelError
from streamliner.model.stack import COUNTS, DECODER_COUNTS

QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json")
"""Beside config.json, of ModelOpt and GPTQ: they too name modules."""


NOT_COMPARED = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "quantization_config", "architectures")


def cut_config_files(folder: Path, structure: Structure, removed: tuple[int, ...], prefix: str) -> dict[str, Any]:
    """File name -> content for the cut model: config.json, and files of quantisation settings if there are any.

    Args:
        folder: the dense checkpoint.
        structure: of the model.
        removed: ascending block indices.
        prefix: where the blocks are on disk.

    Raises:
        UnsupportedModelError: a key cannot follow, or the file would be read as another config than intended.
    """
    removal = Removal.of(removed, len(structure))
    paths = (structure.stack.path, prefix)
    result = {"config.json": _cut_config_file(folder / "config.json", structure, removed, paths)}
    for name in QUANTIZATION_FILES:
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            result[name] = renumbered_names(content, paths, removal.numbers)
    return result


def _cut_config_file(
    file: Path, structure: Structure, removed: tuple[int, ...], paths: tuple[str, ...]
) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config: Any = structure.shell.config
    stack = structure.stack
    complete, removal = stack.config.to_dict(), Removal.of(removed, len(stack))
    cut = cut_config(complete, removed, len(stack), stack.count_name)
    part = result
    path = config_path(config, stack.config)
    if path:
        result |= cut_around(config.to_dict(), removed, len(stack))
    for name in path:
        if not isinstance(part.get(name), dict):
            if any(key in part for key in (*COUNTS, *DECODER_COUNTS, stack.count_name)):
                break  # an older file, in which the part lies flat in the whole
            # The file leaves the part to the class's defaults, so all of it must be said now.
            part[name] = cut if name == path[-1] else {}
        part = part[name]
    changed = {key: value for key, value in cut.items() if value != complete.get(key)}
    aliases = {key: name for key, name in type(stack.config).attribute_map.items() if key not in complete}
    for key, value in list(part.items()):
        if key in aliases and aliases[key] in complete:
            if aliases[key] in changed:  # a second name of the same field, which would win over it
                changed[key] = changed[aliases[key]]
        elif key not in complete and key != "quantization_config":
            # Not echoed by the class: another engine's list, an older name.
            changed |= cut_fields({key: value}, removal, stack.count_name)
        elif FIELDS.get(key) is per_block and _same_length(value, complete[key]):
            # The file's own words for kinds of blocks stay: other engines may not know those of a newer release.
            changed[key] = per_block(key, value, removal)
    part |= changed
    part |= with_legacy_rope(part)
    for where in (result, part):
        if "quantization_config" in where:
            where["quantization_config"] = renumbered_names(where["quantization_config"], paths, removal.numbers)
    _check_read_back(result, structure, removed)
    return result


def _same_length(value: Any, echoed: Any) -> bool:
    return isinstance(value, list) and isinstance(echoed, list) and len(value) == len(echoed)


def _check_read_back(content: dict[str, Any], structure: Structure, removed: tuple[int, ...]) -> None:
    """What was decided was a config object; the file must be read as the same."""
    config: Any = structure.shell.config
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        found: Any = type(config).from_pretrained(folder, local_files_only=True)
    wanted = cut_model_config(config, structure.stack, removed)
    for name in config_path(config, structure.stack.config):
        found, wanted = getattr(found, name), getattr(wanted, name)
    found, wanted = (_comparable(json.loads(json.dumps(each.to_dict(), default=str))) for each in (found, wanted))
    for key in sorted(wanted):
        if found.get(key) != wanted[key]:
            raise UnsupportedModelError(
                f"The cut config.json would be read with {key} = {found.get(key)!r} where {wanted[key]!r} is meant.",
                REPORT,
            )


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items() if key not in NOT_COMPARED}
    return value
