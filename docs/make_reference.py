"""Make reference/settings.md from the settings in the code:  python docs/make_reference.py"""

import dataclasses
from pathlib import Path
from typing import Any

from streamliner import heal_settings, settings
from streamliner.fields import default_of, flags_of, kind_of, long_name

PAGE = Path(__file__).parent / "reference" / "settings.md"
SETTINGS = {
    "search": settings.SearchSettings,
    "cut": settings.CutSettings,
    "prune": settings.PruneSettings,
    "heal": heal_settings.HealSettings,
    "answer": heal_settings.AnswerSettings,
    "evaluate": settings.EvaluateSettings,
    "benchmark": settings.BenchmarkSettings,
    "verify": settings.VerifySettings,
    "inspect": settings.InspectSettings,
    "report": settings.ReportSettings,
    "the hub (cut, prune, heal)": settings.HubSettings,
}
HEAD = """# Settings

`python docs/make_reference.py` makes this page from the code. A setting has one name: `--num-samples` on the command
line is the key `num_samples` in a `--config` file and the keyword `num_samples` in Python. [Command line](../cli.md)
explains how the settings work together. `prune` also takes the settings of `search` and `heal`. Every verb that reads a
model also takes those under [any model](#any-model).
"""

SEVERAL_VERBS = """## several verbs

| flag | |
|---|---|
| `--config FILE` | YAML file of settings (every verb) |
| `--json` | one JSON value on stdout (every verb) |
| `--recipe NAME` | ready-made settings (`search`, `prune`, `heal`) |
| `--output OUT`, `-o` | what is written: the model of `cut`, `prune` and `heal`, the file of `answer` |
| `--output RUN`, `-o` | the run folder of `search`; its key and keyword is `run` |
"""


def page() -> str:
    """The page."""
    parts = [section(verb, each) for verb, each in SETTINGS.items()]
    return "\n".join([HEAD, *parts, section("any model", settings.ModelSettings), SEVERAL_VERBS])


def section(title: str, each: type) -> str:
    """A table of settings."""
    rows = [row(each, field.name) for field in dataclasses.fields(each)]
    return "\n".join(
        [f"## {title}\n", "| flag | key, keyword | default | |", "|---|---|---|---|", *filter(None, rows), ""]
    )


def row(each: type, field: str) -> str:
    """A setting: its flag, its name in files and in Python, its default and its help; "" if it has no flag."""
    flag = flags_of(each)[field]
    if flag.python_only:
        return ""
    value = "" if kind_of(each, field) is bool else f" {flag.metavar or ''}".rstrip()
    more = "; repeatable" if flag.repeatable and "epeatable" not in flag.help else ""
    choices = f": {', '.join(f'`{choice}`' for choice in flag.choices)}" if flag.choices else ""
    cells = (
        f"`{long_name(each, field)}{value}`",
        f"`{field}`",
        shown(default_of(each, field)),
        f"{flag.help}{choices}{more}",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def shown(default: Any) -> str:
    """A default as it is typed; "" for none."""
    if default is None or default is dataclasses.MISSING or (not isinstance(default, bool) and default in ("", ())):
        return ""
    return f"`{'yes' if default else 'no'}`" if isinstance(default, bool) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
