"""A model spread over two emulated accelerators (`emulated.py`), as `--device auto` spreads it over two GPUs."""

from __future__ import annotations

from accelerate import dispatch_model

from streamliner.model.blocks import Blocks
from streamliner.model.last_map import modules_after_stack


def spread(model):
    """The lower half of the blocks with the embeddings, the others with norm and head; tied weights stay together."""
    blocks = Blocks(model)
    after = modules_after_stack(blocks)
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    places = {}
    for name, module in model.named_modules():
        inside = blocks.path.startswith(f"{name}.") or name in ("", blocks.path)
        if inside or any(name.startswith(f"{place}.") for place in places):
            continue
        own = name.removeprefix(f"{blocks.path}.")
        tied = any(id(parameter) in shared for parameter in module.parameters())
        late = int(own) >= len(blocks) // 2 if own.isdigit() else name in after and not tied
        places[name] = f"emulated:{int(late)}"
    return dispatch_model(model, places, main_device="emulated:0")
