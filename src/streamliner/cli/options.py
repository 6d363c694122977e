"""Flags that several verbs share, and the settings built from them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamliner.errors import EvaluationError, MethodError, UserError

if TYPE_CHECKING:
    from streamliner.heal.settings import HealSettings
    from streamliner.model.session import ModelSettings
    from streamliner.verbs.search import SearchSettings

MODEL, SEARCH, HEAL, OUTPUT = "Model", "Search", "Heal", "Output"

Model = Annotated[str, typer.Argument(help="Hub id, folder or GGUF file.", metavar="MODEL")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=MODEL)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint brings.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str,
    typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16, for measuring.", rich_help_panel=MODEL),
]
Device = Annotated[
    str | None,
    typer.Option(help="Torch device, or auto for all GPUs; the best there is if not given.", rich_help_panel=MODEL),
]
Method = Annotated[
    str, typer.Option(help="Search method; see: streamliner methods.", rich_help_panel=SEARCH, metavar="NAME")
]
Remove = Annotated[
    str | None,
    typer.Option(help="Blocks to remove: 7, or 20% of them (rounded up).", rich_help_panel=SEARCH, metavar="N|P%"),
]
MaxPerplexityIncrease = Annotated[
    str | None,
    typer.Option(
        help="Stop before calibration perplexity has risen by more than this.", rich_help_panel=SEARCH, metavar="P%"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the method; repeatable.", rich_help_panel=SEARCH, metavar="KEY=VALUE"),
]
ProtectFirst = Annotated[
    int | None, typer.Option(help="Blocks at the start that stay (default: the method's).", rich_help_panel=SEARCH)
]
ProtectLast = Annotated[
    int | None, typer.Option(help="Blocks at the end that stay (default: the method's).", rich_help_panel=SEARCH)
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="wikitext2, c4, python-docs (each with :split), a .txt or .jsonl\\[:field] file, a folder, or "
        "hf:dataset\\[/config]\\[:split\\[:field]]. Default: wikitext2 for a hub model, "
        "else python-docs, which needs no network.",
        rich_help_panel=SEARCH,
        metavar="SOURCE",
    ),
]
NumSamples = Annotated[int, typer.Option(help="Windows of calibration text.", rich_help_panel=SEARCH)]
SequenceLength = Annotated[
    int | None,
    typer.Option(help="Tokens of a window (default: 2048, or the model's limit).", rich_help_panel=SEARCH),
]
BatchSize = Annotated[int, typer.Option(help="Windows in one forward.", rich_help_panel=SEARCH, min=1)]
Seed = Annotated[int, typer.Option(help="Chooses the windows.", rich_help_panel=SEARCH)]
SearchEffort = Annotated[
    str | None,
    typer.Option(
        help="exact (default) measures every candidate; adaptive leaves out those that can hardly be the least.",
        rich_help_panel=SEARCH,
        metavar="exact|adaptive",
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        help="Where weights of blocks stay between uses, for a model larger than memory: disk, or cpu for a GPU.",
        rich_help_panel=MODEL,
        metavar="disk|cpu",
    ),
]
MemoryBudget = Annotated[
    str,
    typer.Option(
        help="Memory that a search may take beside the model: 500MB, 2GB.", rich_help_panel=SEARCH, metavar="BYTES"
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an output that streamliner wrote, and a run of other settings.",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.", rich_help_panel=OUTPUT)]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Skip reloading and comparing; a cut then loads no weights. Structure is checked all the same.",
        rich_help_panel=OUTPUT,
    ),
]

Network = Annotated[
    str,
    typer.Option(
        help="What takes the place of each run of removed blocks: block, swiglu, ffn; or none, with --lora.",
        rich_help_panel=HEAL,
        metavar="NAME",
    ),
]
NetworkDepth = Annotated[
    int, typer.Option(help="Blocks of a network: of n + k blocks in a row, k stay.", rich_help_panel=HEAL, min=1)
]
Init = Annotated[
    str,
    typer.Option(
        help="What a block starts as: the first of the blocks that it replaces, last, mean, or random.",
        rich_help_panel=HEAL,
        metavar="NAME",
    ),
]
Residual = Annotated[
    bool,
    typer.Option(
        help="swiglu and ffn add to the stream, behind a norm; without, they make it anew, as the authors' code does.",
        rich_help_panel=HEAL,
    ),
]
LossWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--loss",
        help="mse (default), normalized-mse, lm or kd; repeatable, each with a weight: --loss mse=1 --loss kd=0.5.",
        rich_help_panel=HEAL,
        metavar="NAME[=WEIGHT]",
    ),
]
TopK = Annotated[
    int | None, typer.Option(help="kd tells only so many of the dense model's words apart.", rich_help_panel=HEAL)
]
NetworkInput = Annotated[
    str,
    typer.Option(
        help="Stream that mse trains a network on: the dense model's, or the cut one's with all networks before it.",
        rich_help_panel=HEAL,
        metavar="dense|cut",
    ),
]
Lora = Annotated[
    int,
    typer.Option(
        help="Rank of adapters on all remaining blocks, merged at the end; needs lm or kd.", rich_help_panel=HEAL
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Training text: a SOURCE as for --calibration, or slimpajama; repeatable, each with its share of the "
        "tokens. Default: slimpajama for a hub model, else python-docs.",
        rich_help_panel=HEAL,
        metavar="SOURCE[=WEIGHT]",
    ),
]
TrainingLength = Annotated[
    int | None,
    typer.Option(
        "--sequence-length", help="Tokens of a window (default: 2048, or the model's limit).", rich_help_panel=HEAL
    ),
]
ValidationWindows = Annotated[
    int,
    typer.Option(help="Windows of the text that are held out; the state best on them is kept.", rich_help_panel=HEAL),
]
Tokens = Annotated[
    str | None, typer.Option(help="Budget: 200k, 60M (default), 1.3G.", rich_help_panel=HEAL, metavar="N")
]
Steps = Annotated[int | None, typer.Option(help="Budget in optimiser steps.", rich_help_panel=HEAL)]
Epochs = Annotated[float | None, typer.Option(help="Budget in passes through the text.", rich_help_panel=HEAL)]
TrainingBatch = Annotated[
    int,
    typer.Option("--batch-size", help="Windows of an optimiser step, over all processes.", rich_help_panel=HEAL, min=1),
]
MicroBatch = Annotated[int, typer.Option(help="Windows in one forward; gradients add up.", rich_help_panel=HEAL, min=1)]
LearningRate = Annotated[float, typer.Option(help="AdamW's, at its height.", rich_help_panel=HEAL)]
MinLearningRate = Annotated[float, typer.Option(help="At the last step.", rich_help_panel=HEAL)]
Warmup = Annotated[float, typer.Option(help="Share of the steps.", rich_help_panel=HEAL, min=0, max=1)]
WeightDecay = Annotated[float, typer.Option(help="AdamW's.", rich_help_panel=HEAL)]
Clip = Annotated[float, typer.Option(help="Largest norm of a gradient.", rich_help_panel=HEAL)]
MixedPrecision = Annotated[
    str | None,
    typer.Option(help="no, bf16 or fp16; if not given, as the model's own precision asks.", rich_help_panel=HEAL),
]
Validations = Annotated[
    int, typer.Option(help="How often the held-out windows are measured in the run.", rich_help_panel=HEAL, min=1)
]
SaveEvery = Annotated[
    int | None,
    typer.Option(help="Steps between saved states; about a minute if not given.", rich_help_panel=HEAL, min=1),
]
Heal = Annotated[
    bool,
    typer.Option(
        "--heal",
        help="Train a lightweight network in the place of removed blocks. With --method streamline --remove 8, "
        "9 blocks become 1.",
        rich_help_panel=HEAL,
    ),
]
HealSet = Annotated[
    list[str] | None,
    typer.Option(
        help="Any other setting of streamliner heal, such as batch_size=8; repeatable.",
        rich_help_panel=HEAL,
        metavar="KEY=VALUE",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        help="A tracker of accelerate, such as tensorboard; repeatable.", rich_help_panel=HEAL, metavar="NAME"
    ),
]


def model_settings(
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    dtype: str,
    device: str | None,
    offload: str | None = None,
) -> ModelSettings:
    """Build and check."""
    from streamliner.model.load import DTYPES
    from streamliner.model.session import ModelSettings

    if dtype not in DTYPES:
        raise UserError(f"There is no dtype {dtype}.", f"Choose one of {', '.join(DTYPES)}.")
    if offload not in (None, "disk", "cpu"):
        raise UserError(f"There is no place {offload} to offload to.", "Choose disk or cpu.")
    if device not in (None, "auto"):
        import torch

        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"The device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return ModelSettings(model, revision, trust_remote_code, dtype, device, offload)


def method_settings(pairs: list[str] | None, first: int | None, last: int | None) -> dict[str, Any]:
    """`--set` and `--protect-*` as one dict."""
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise MethodError(f"--set {pair} is not KEY=VALUE.", "Write for instance --set metric=one-shot.")
        settings[key] = value
    return settings | {k: v for k, v in (("protect_first", first), ("protect_last", last)) if v is not None}


def parse_bytes(text: str) -> int:
    """A size in decimal units: "500MB" -> 500_000_000.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if size < 1:
        raise UserError(f"--memory-budget {text} is not a size.", "Write for instance 500MB or 2GB.")
    return size


def parse_count(text: str) -> int:
    """A number of tokens: "60M" -> 60_000_000.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)", text.strip(), re.IGNORECASE)
    count = round(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if count < 1:
        raise UserError(f"--tokens {text} is not a number of tokens.", "Write for instance 200k or 60M.")
    return count


def weighted(flag: str, text: str) -> tuple[str, float]:
    """ "name=0.5" -> ("name", 0.5); the weight is 1 if none is there."""
    name, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError as error:
        raise UserError(
            f"{flag} {text}: {weight} is not a weight.", f"Write for instance {flag} {name}=0.5."
        ) from error


def heal_settings(**values: Any) -> HealSettings:
    """From the flags of `heal` and `prune --heal`."""
    from streamliner.heal.settings import HealSettings
    from streamliner.text.stream import PRESETS

    losses = [weighted("--loss", text) for text in values.pop("loss") or ["mse"]]
    if len(dict(losses)) < len(losses):
        raise UserError("--loss names one loss twice.")
    data: list[tuple[str, float]] = []
    for text in values.pop("data") or []:
        name, weight = weighted("--data", text)
        data += [(source, share * weight) for source, share in PRESETS.get(name, ((name, 1.0),))]
    tokens, track = values.pop("tokens"), values.pop("track", None)
    return HealSettings(
        **values,
        loss=dict(losses),
        data=tuple(data),
        tokens=None if tokens is None else parse_count(tokens),
        track=tuple(track or ()),
    )


def heal_set(pairs: list[str] | None) -> dict[str, Any]:
    """`--heal-set`, by the types of the settings."""
    import dataclasses

    from streamliner.heal.settings import HealSettings

    given = ("network", "loss", "lora", "data", "tokens", "seed", "sequence_length")
    types = {field.name: str(field.type) for field in dataclasses.fields(HealSettings) if field.name not in given}
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        key = key.replace("-", "_")
        key = {"lr": "learning_rate", "min_lr": "min_learning_rate"}.get(key, key)
        if not equals or key not in types:
            raise UserError(f"--heal-set {pair} is no setting of healing.", f"The settings are {', '.join(types)}.")
        kind = next(kind for kind in ("bool", "float", "int", "tuple", "str") if kind in types[key])
        try:
            if kind == "bool":
                settings[key] = {"true": True, "false": False}[text.lower()]
            elif kind == "tuple":
                settings[key] = tuple(text.split(","))
            else:
                settings[key] = {"float": float, "int": int, "str": str}[kind](text)
        except (ValueError, KeyError) as error:
            raise UserError(f"--heal-set {pair}: {text} is not of type {kind}.") from error
    return settings


def search_settings(**values: Any) -> SearchSettings:
    """From the flags of `search` and `prune`."""
    from streamliner.verbs.search import SearchSettings

    effort = values.pop("search_effort")
    if effort and any(pair.startswith("effort=") for pair in values["set_"] or []):
        raise MethodError("The effort is given twice, by --search-effort and --set effort.")
    values["method_settings"] = method_settings(
        values.pop("set_"), values.pop("protect_first"), values.pop("protect_last")
    ) | ({"effort": effort} if effort else {})
    values["memory_budget"] = parse_bytes(values["memory_budget"])
    return SearchSettings(**values)


def model_names(models: list[str], dense: str | None) -> list[str]:
    """The dense model first, then the others, each once.

    Raises:
        EvaluationError: there is a dense model, and no other to compare with it.
    """
    names = list(dict.fromkeys(name.rstrip("/") or name for name in [*([dense] if dense else []), *models]))
    if dense and len(names) == 1:
        raise EvaluationError(f"There is nothing to compare with the dense model {dense}.", "Name a cut model.")
    return names
