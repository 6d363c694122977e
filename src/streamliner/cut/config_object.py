"""The config object of the cut model, checked: its class must keep what the rules decided."""

from __future__ import annotations

import copy
import json
from typing import Any

from streamliner.cut.config import cut_config, cut_outer_config
from streamliner.errors import UnsupportedModelError
from streamliner.model.compat import copy_attention_kernel
from streamliner.model.stack import Stack, config_path


def cut_config_object(config: Any, stack: Stack, removed: tuple[int, ...]) -> Any:
    """A copy of `config` with the part that describes the stack cut.

    Raises:
        UnsupportedModelError: a key cannot follow the removal, or the class changes its value.
    """
    part = _cut_part(stack, removed)
    path = config_path(config, stack.config)
    if not path:
        return part
    result = copy.deepcopy(config)
    for name, value in cut_outer_config(config.to_dict(), removed, len(stack)).items():
        setattr(result, name, value)
    parent = result
    for name in path[:-1]:
        parent = getattr(parent, name)
    setattr(parent, path[-1], part)
    return result


def last_line(error: BaseException) -> str:
    """The last line of another library's error message, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _cut_part(stack: Stack, removed: tuple[int, ...]) -> Any:
    before = stack.config.to_dict()
    cut = cut_config(before, removed, len(stack), stack.count_name)
    cut.pop("quantization_config", None)  # the weights in memory are dense; a checkpoint keeps its own
    try:
        part = type(stack.config).from_dict(copy.deepcopy(cut))
    except Exception as error:  # validators of configs raise errors of their own types
        raise UnsupportedModelError(f"The config of the cut model would not be valid: {last_line(error)}") from error
    # A class may change a value that it is given, as Gemma 4's does with the kind of the last block.
    after = part.to_dict()
    for key in sorted(cut):
        if _as_json(cut[key]) != _as_json(after.get(key)) and cut[key] != before.get(key):
            raise UnsupportedModelError(
                f"The cut config would have {key} = {cut[key]}, which its class changes to {after.get(key)}."
            )
    if _has_attention(stack.config) and not _has_attention(part):
        raise UnsupportedModelError(
            "One block with attention must stay: without it transformers cannot tell how long a cached text is."
        )
    copy_attention_kernel(stack.config, part)
    return part


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _has_attention(config: Any) -> bool:
    """Whether a block caches keys and values, if the config names the kinds of its blocks."""
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, (list, tuple)):
        return False
    return any("hybrid" in kind or ("attention" in kind and "linear" not in kind) for kind in kinds)
