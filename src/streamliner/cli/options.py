"""Flags that several verbs share, and the settings built from them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamliner.errors import MethodError, UserError

if TYPE_CHECKING:
    from streamliner.pipeline import SearchSettings
    from streamliner.session import ModelSettings

MODEL, SEARCH, OUTPUT = "Model", "Search", "Output"

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
        help="wikitext2, c4, python-docs (each with :split), a .txt or .jsonl[:field] file, a folder, or "
        "hf:dataset[/config][:split[:field]]. Default: wikitext2 for a hub model, "
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
    bool, typer.Option("--overwrite", help="Replace an output that streamliner wrote.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.", rich_help_panel=OUTPUT)]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Skip reloading and comparing; then no weights are loaded. Structure is checked all the same.",
        rich_help_panel=OUTPUT,
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
    from streamliner.models import DTYPES
    from streamliner.session import ModelSettings

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


def search_settings(**values: Any) -> SearchSettings:
    """From the flags of `search` and `prune`."""
    from streamliner.pipeline import SearchSettings

    effort = values.pop("search_effort")
    if effort and any(pair.startswith("effort=") for pair in values["set_"] or []):
        raise MethodError("The effort is given twice, by --search-effort and --set effort.")
    values["method_settings"] = method_settings(
        values.pop("set_"), values.pop("protect_first"), values.pop("protect_last")
    ) | ({"effort": effort} if effort else {})
    values["memory_budget"] = parse_bytes(values["memory_budget"])
    return SearchSettings(**values)
