"""Write healed weights back into a GGUF file: the tensors that changed, in the types that they have there.

transformers changes the values of some tensors when it loads a file; `INVERSES` undoes that. What is written is read
back by the same code, tensor by tensor, and the model gets these values: so what is measured is what the file has.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamliner.cut.memory import cut_model
from streamliner.errors import HealingError
from streamliner.heal.graft import Graft
from streamliner.heal_settings import HealSettings
from streamliner.model.compat import gguf_names, has_own_gguf_conversion, loaded_from_gguf
from streamliner.model.gguf_header import read_header
from streamliner.model.gguf_reader import stored

Values = np.ndarray[Any, Any]
HINT = "Cut the dense model into a folder and heal that: streamliner cut MODEL --plan CUT -o FOLDER"


def _pairs_of_halves(config: Any, name: str, values: Values) -> Values:
    """llama.cpp rotates pairs of neighbouring numbers of queries and keys, transformers those of two halves."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return values
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def _one_plus(config: Any, name: str, values: Values) -> Values:
    """A norm of these models scales by 1 + weight, and a file has the sum."""
    return values + 1 if name.endswith("norm.weight") else values


INVERSES: dict[str, Callable[[Any, str, Values], Values]] = {
    "gemma2": _one_plus,
    "gemma3": _one_plus,
    "llama": _pairs_of_halves,
    "nemotron": _one_plus,
}
"""Architecture -> (config, name in the file, values in memory) -> values in the file. A new rule goes here."""


@dataclass(frozen=True)
class StoredWeights:
    """Tensors of a healed model as a file will have them.

    Attributes:
        data: number of the type and bytes by name in the file.
        values: what transformers will load, by name in the model.
        report: a JSON value: how many tensors changed by type, which are in F16 as the gguf library cannot write their
            type, and the largest error of a tensor, root mean square relative to that of its values.
    """

    data: dict[str, tuple[int, bytes]]
    values: dict[str, Tensor]
    report: dict[str, Any]


def check_gguf_healing(file: Path, settings: HealSettings) -> None:
    """Raise HealingError, before any work, if healed weights cannot be written as such a file."""
    architecture = read_header(file).architecture
    if settings.network not in ("block", "none"):
        found = f"A GGUF file holds only stock blocks, not the network {settings.network}."
        raise HealingError(found, "Choose --network block or none, or write a folder.")
    if architecture not in INVERSES and has_own_gguf_conversion(architecture):
        raise HealingError(
            f"transformers changes tensors of {architecture} when it loads a GGUF file, in a way that is not undone "
            "here: healed weights cannot be written back.",
            HINT,
        )


def tensors_in_memory(file: Path, model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a GGUF file of this model, as transformers loads them, with their names in the model."""
    for _, inner, _, values in _tensors(file, model):
        yield inner, values


@torch.no_grad()
def store_weights(graft: Graft, file: Path) -> StoredWeights:
    """Bring the tensors of the healed model that differ from those in `file`, the cut one, into the file's types.

    The model then has the values that they have in the file.

    Raises:
        HealingError: a tensor does not come out of the file as it went in.
    """
    import gguf

    architecture, model = read_header(file).architecture, cut_model(graft.blocks.model, graft.removed)
    if graft.networks:
        raise HealingError("A GGUF file holds only stock blocks.", "Choose --network block or none, or write a folder.")
    tensors, data, values = model.state_dict(), {}, dict[str, Tensor]()
    types, in_float16, largest = dict[str, int](), list[str](), 0.0
    for name, inner, kind, there in _tensors(file, model):
        here = tensors[inner]
        if torch.equal(there.to(here.dtype), here.cpu()):
            continue
        healed = here.float().cpu().numpy()
        change = INVERSES.get(architecture)
        inverse = healed if change is None else change(model.config, name, healed)
        returned = loaded_from_gguf(architecture, model.config, name, inverse)
        if not np.allclose(returned, healed, rtol=1e-5, atol=1e-6):
            raise HealingError(f"The healed tensor {inner} would be loaded from a GGUF file as another one.", HINT)
        packed, written = _packed(inverse, kind)
        if written != kind:
            in_float16.append(name)
        loaded = loaded_from_gguf(architecture, model.config, name, gguf.dequantize(packed, written))
        error = float(np.sqrt(np.square(loaded - healed).mean() / max(np.square(healed).mean(), 1e-30)))
        if not np.isfinite(error):
            raise HealingError(f"The healed tensor {inner} has numbers that do not fit into {written.name}.", HINT)
        largest, types[written.name] = max(largest, error), types.get(written.name, 0) + 1
        data[name] = int(written), packed.tobytes()
        here.copy_(torch.from_numpy(np.array(loaded)))
        values[inner] = here.clone()
    report = {"changed": types, "in_float16": in_float16, "largest_error": largest}
    return StoredWeights(data, values, report)


def _packed(values: Values, kind: Any) -> tuple[Values, Any]:
    """The values in a type, or in F16 if the library can only read that type; and the type."""
    import gguf

    with np.errstate(over="ignore"):  # seen afterwards
        try:
            return gguf.quantize(values, kind), kind
        except NotImplementedError:
            return gguf.quantize(values, gguf.GGMLQuantizationType.F16), gguf.GGMLQuantizationType.F16


def _tensors(file: Path, model: Any) -> Iterator[tuple[str, str, Any, Tensor]]:
    """Name, name in the model, type, and values as they are loaded, of each tensor that the model has."""
    import gguf

    header, data = read_header(file), np.memmap(file, np.uint8, "r")
    names: Mapping[str, str] = gguf_names(header.architecture, model)
    for name, place in header.places.items():
        if name in names:
            kind, packed = stored(data, place)
            values = loaded_from_gguf(header.architecture, model.config, name, gguf.dequantize(packed, kind))
            yield name, names[name], kind, torch.from_numpy(np.array(values))
