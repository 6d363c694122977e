"""What a model is, which of its blocks can go and what that saves: from its config alone, no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from streamliner.cut.checkpoint import read_sizes
from streamliner.cut.structure import Structure
from streamliner.session import Session
from streamliner.stack import Stack

KIND_LISTS = ("layer_types", "layers_block_type", "attention_layers", "attn_layers")
"""Config fields that name the kind of each block."""


def inspect_model(session: Session) -> dict[str, Any]:
    """What `streamliner inspect` shows, as a JSON value."""
    structure, stack = session.structure, session.stack
    per_block = [count_parameters(module) for module in stack.modules]
    return {
        "model": session.source.name,
        "kind": session.source.kind,
        "architecture": type(structure.shell).__name__,
        "model_type": session.config.model_type,
        "stack": stack.path,
        "num_blocks": len(stack),
        "hidden_size": getattr(stack.config, "hidden_size", None),
        "vocab_size": stack.config.vocab_size,
        "parameters": count_parameters(structure.shell),
        "bytes": checkpoint_bytes(session),
        "parameters_in_blocks": sum(per_block),
        "blocks": [
            {"index": i, "kind": kind, "parameters": count}
            for i, (kind, count) in enumerate(zip(block_kinds(stack), per_block, strict=True))
        ],
        "not_removable": {str(index): reason for index, reason in fixed_blocks(structure).items()},
    }


def fixed_blocks(structure: Structure) -> dict[int, str]:
    """The blocks that the architecture does not let go alone, with the reason."""
    reasons = {index: structure.refusal((index,)) for index in range(len(structure))} if len(structure) > 1 else {}
    return {index: reason for index, reason in reasons.items() if reason}


def by_reason(fixed: Mapping[Any, str]) -> dict[str, str]:
    """Reason -> the blocks that it keeps, such as "Blocks 0, 3"."""
    result: dict[str, list[str]] = {}
    for index, reason in fixed.items():
        result.setdefault(reason, []).append(str(index))
    return {reason: f"Block{'s' * (len(names) > 1)} {', '.join(names)}" for reason, names in result.items()}


def block_kinds(stack: Stack) -> list[str]:
    """A word or two for each block: what its config calls it, and the parts in which blocks differ."""
    lists = (getattr(stack.config, name, None) for name in KIND_LISTS)
    named = next((kinds for kinds in lists if isinstance(kinds, list) and len(kinds) == len(stack)), None)
    parts = [{name: type(child).__name__ for name, child in block.named_children()} for block in stack.modules]
    common = {name for name in parts[0] if all(part.get(name) == parts[0][name] for part in parts)}
    kinds = []
    for index, module in enumerate(stack.modules):
        differing = [
            cls for name, cls in parts[index].items() if name not in common and not cls.endswith(("Identity", "Norm"))
        ]
        kinds.append(", ".join(dict.fromkeys([named[index] if named else type(module).__name__, *differing])))
    return kinds


def count_parameters(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def checkpoint_bytes(session: Session) -> int | None:
    """Size of the weight files; None for a hub model that is not here yet."""
    if session.source.kind == "gguf":
        return (Path(session.source.path) / session.source.gguf_file).stat().st_size
    return read_sizes(Path(session.source.path)) if session.source.kind == "folder" else None
