"""Keys of a GGUF file that depend on the position of blocks. A rule for a new key goes here.

Other programs derive some of this from the number of blocks where a file does not say it. So a cut file says it, and is
refused where no key can.
"""

from typing import Any

from streamliner.cut.rules import Removal, Rule, first_blocks, last_blocks, none_left, not_per_block, refused
from streamliner.errors import UnsupportedModelError
from streamliner.model.gguf_config import LARGEST_GEMMAS, by_period
from streamliner.model.gguf_header import Header
from streamliner.model.mark import GGUF_MARK

PATTERN = "attention.sliding_window_pattern"
"""Which blocks attend to a window: a list, or a period whose last block attends to all."""
ASSUMED_PERIODS = {"cohere2": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2}
"""Architecture -> the period that llama.cpp and transformers assume in a file that does not say it."""
PUBLISHED = {"gemma2": (26, 42, 46), "gemma3": (18, 26, 34, 48, 62), "gpt-oss": (24, 36)}
"""Numbers of blocks of the published models of these architectures."""
SIZES = {"baichuan": (32, 40), "exaone4": (64,), **{name: (size,) for name, size in LARGEST_GEMMAS.items()}}
"""Numbers of blocks from which llama.cpp concludes how a model of this architecture computes: the scale of attention of
Gemma 2 and 3 27B, rotary embeddings or none of Baichuan, whether windows slide in EXAONE 4."""


def last_of_period(key: str, value: Any, removal: Removal) -> Any:
    """The last block of each period is special; another period may describe the kept blocks."""
    if type(value) is not int or value < 2:
        return value
    special = [new + 1 for new, old in enumerate(removal.kept) if (old + 1) % value == 0]
    period = special[0] if special else len(removal.kept) + 1
    if special != list(range(period, len(removal.kept) + 1, period)):
        raise UnsupportedModelError(f"No {key} describes the blocks that stay (it is {value} now).")
    return period


RULES: dict[str, Rule] = {
    "attention.shared_kv_layers": last_blocks,
    "classifier.output_labels": not_per_block,
    "full_attention_interval": last_of_period,
    "interleave_moe_layer_step": last_of_period,
    "leading_dense_block_count": first_blocks,
    "moe_every_n_layers": last_of_period,
    "n_deepstack_layers": refused,
    "nextn_predict_layers": none_left,
    "rope.dimension_sections": not_per_block,
}
"""Key of the architecture, without its name -> rule. Of all others, lists with an entry for each block follow."""


def cut_keys(header: Header, removal: Removal) -> dict[str, Any]:
    """Key -> its value in the cut file, for the keys that change and those that must be added.

    An UnsupportedModelError names what no key can say.
    """
    architecture, before, after = header.architecture, removal.num_blocks, len(removal.kept)
    for size in SIZES.get(architecture, ()):
        if size in (before, after):
            found = f"llama.cpp computes a {architecture} of {size} blocks differently than one of more or fewer"
            raise UnsupportedModelError(f"{found}, and no key of the file says how.", "Write a folder: -o NAME")
    result: dict[str, Any] = {f"{architecture}.block_count": after}
    total = header.own("block_count")  # with those for multi-token prediction after the last one
    for name, value in header.keys.items():
        own = name.removeprefix(f"{architecture}.")
        if own == name or name in result:
            continue
        rule = RULES.get(own)
        if rule is not None:
            result[name] = rule(name, value, removal)
        elif isinstance(value, list) and len(value) in (before, total):
            result[name] = [value[index] for index in removal.kept]
    pattern = _written_pattern(header, removal)
    if pattern is not None:
        result[f"{architecture}.{PATTERN}"] = pattern
    return {name: value for name, value in result.items() if value != header.keys.get(name)}


def assumed_pattern(header: Header, num_blocks: int) -> list[bool] | None:
    """Which blocks attend to a window in a file that gives a period, or leaves it to be assumed; otherwise None."""
    period = header.own(PATTERN)
    if period is None and header.own("attention.sliding_window") != 0:
        needs_window = header.architecture == "gemma3"  # the others have a window that is assumed too
        if header.own("attention.sliding_window") or not needs_window:
            period = ASSUMED_PERIODS.get(header.architecture)
    return by_period(period, num_blocks) if type(period) is int else None


def pattern_note(header: Header) -> str:
    """A sentence if a pattern is assumed of a file that looks cut, "" otherwise."""
    count, architecture = header.own("block_count"), header.architecture
    ours = header.own(PATTERN) is not None or GGUF_MARK in header.keys
    if ours or count in PUBLISHED.get(architecture, (count,)) or assumed_pattern(header, count) is None:
        return ""
    return (
        f"The file does not say which blocks attend to a window, and no published {architecture} has {count} blocks. "
        f"Programs assume that the last of each {ASSUMED_PERIODS[architecture]} attends to the whole text, which is "
        "wrong if the file was converted from a cut checkpoint."
    )


def _written_pattern(header: Header, removal: Removal) -> list[bool] | None:
    """The list for the cut file, None where it has one already or what is assumed there is right."""
    dense, assumed = (assumed_pattern(header, count) for count in (removal.num_blocks, len(removal.kept)))
    if dense is None:
        return None
    kept = [dense[index] for index in removal.kept]
    return None if kept == assumed else kept
