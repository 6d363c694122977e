"""What a model is, which of its blocks can go and what that saves: from its config alone, no weights are read."""

from typing import Any

from streamliner.cut.checkpoint import check_files
from streamliner.cut.gguf_keys import pattern_note
from streamliner.cut.structure import Structure
from streamliner.errors import UserError
from streamliner.model.parts import count_parameters
from streamliner.model.session import Session, checkpoint_bytes
from streamliner.model.stack import block_kinds


def inspect(session: Session) -> dict[str, Any]:
    """What `streamliner inspect` shows, as a JSON value."""
    structure, stack = Structure(session.shell), session.stack
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
        "notes": _notes(session, structure),
        "not_removable": {str(index): reason for index, reason in structure.fixed_blocks().items()},
    }


def _notes(session: Session, structure: Structure) -> list[str]:
    """What would stop a search or a cut of this checkpoint, and what may be wrong with it."""
    try:
        check_files(session.source, structure)
    except UserError as error:
        return [str(error)]
    note = pattern_note(session.source.gguf_header) if session.source.kind == "gguf" else ""
    return [note] if note else []
