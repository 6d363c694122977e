"""The docs cannot drift: every verb, flag, method and refused key is in them, and what the README shows runs."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from command import run
from places import TINY
from streamliner.cli import app
from streamliner.cli.renamed import RENAMED
from streamliner.cut.rules import FIELDS
from streamliner.search.registry import method_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()
VERBS = get_command(app).commands


def code(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_flag_is_documented(verb):
    assert f"## {verb}" in CLI
    for parameter in VERBS[verb].params:
        for option in (o for o in parameter.opts if o.startswith("--")):
            assert f"`{option}" in CLI, option
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    out, _ = run(capsys, verb, "--help")
    assert "Usage:" in out
    if verb in ("search", "prune"):
        assert "--calibration" in out


def test_no_documented_flag_is_gone():
    parameters = [parameter for verb in VERBS.values() for parameter in verb.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {old for names in RENAMED.values() for old in names}  # told under "Renamed flags"
    for text in (CLI, README):
        assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


def test_the_commands_of_the_best_example_have_their_flags():
    text = (ROOT / "examples" / "best.sh").read_text().replace("\\\n", " ")
    commands = re.findall(r"^streamliner (\w+) (.*)$", text, re.MULTILINE)
    assert [verb for verb, _ in commands] == ["prune", "evaluate", "benchmark", "report"]
    for verb, arguments in commands:
        known = {option for parameter in VERBS[verb].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)(--?[a-z-]+)", arguments)) <= known


def test_the_leaderboard_is_what_its_files_say():
    """Of real measurements: nobody types its numbers."""
    module = runpy.run_path(str(ROOT / "benchmarks" / "leaderboard.py"))
    assert (ROOT / "docs" / "leaderboard.md").read_text() == module["page"]()
    names = {entry for folder in module["FOLDER"].iterdir() for entry in rows_of(module, folder)}
    assert names <= set(module["ENTRIES"])


def rows_of(module, folder):
    """Names of the entries of a model, whose files must be named as their rows say."""
    for file, row in zip(sorted(folder.glob("*.json")), module["read_rows"](folder), strict=True):
        assert file.stem == f"{row['percent']}-{row['entry']}-{row['seed']}"
        yield row["entry"]


def test_every_method_is_documented():
    text = (ROOT / "docs" / "methods.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE)) == set(method_names())


def test_fields_named_in_the_docs_have_rules():
    text = (ROOT / "docs" / "architectures.md").read_text()
    table = text[text.index("## How the config follows") : text.index("## When weights follow")]
    named = set(re.findall(r"`([a-z_]+)`", table)) - {"decoder_sparse_step"}  # one of several fields, in JOINT
    assert named <= set(FIELDS)


def test_the_commands_of_the_readme_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands = [line for block in code("sh") for line in block.splitlines() if line.startswith("streamliner")]
    assert len(commands) >= 6
    outputs = 0
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        if arguments[0] in ("heal", "evaluate", "benchmark"):
            arguments[1] = "OUT1"
        elif "OUT" in arguments:
            outputs += 1
            arguments[arguments.index("OUT")] = f"OUT{outputs}"
        if arguments[0] in ("search", "prune"):
            arguments += ["--num-samples", "2", "--sequence-length", "64"]
        if arguments[0] == "benchmark":
            arguments += ["--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "1"]
        if arguments[0] == "evaluate":
            arguments += ["--sequence-length", "64", "--num-samples", "2", "--no-cache"]
        if arguments[0] == "heal" or "--heal" in arguments:
            arguments += ["--tokens", "512", "--global-batch-size", "2", "--validation-windows", "2"]
        if arguments[0] == "heal":
            arguments += ["--sequence-length", "64"]
        run(capsys, *(str(TINY) if argument == "MODEL" else argument for argument in arguments))
    for output in ("OUT3", "OUT4", "HEALED"):
        assert (tmp_path / output / "model.safetensors").exists()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = code("python")
    exec(compile(block.replace('"MODEL"', repr(str(TINY))), "README", "exec"), {})
    out = capsys.readouterr().out
    assert "removed  blocks" in out
    assert "Verification" in out
    assert (tmp_path / "OUT" / "model.safetensors").exists()


def test_links_and_targets_exist():
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("folder", sorted(file.parent for file in (ROOT / "docs").glob("*/report.md")))
def test_a_report_of_real_measurements_is_what_its_files_say(tmp_path, folder):
    """The pages are made from the files beside them, whose numbers nobody types."""
    from streamliner.report.render import write_report

    runs = sorted(file.parent.name for file in folder.glob("*/frontier.json"))
    sources = [str(folder / name) for name in (*runs, "evaluation.json", "benchmark.json")]
    made = write_report(sources, tmp_path / "report.html")
    pages = [file for path in made for file in (path.iterdir() if path.is_dir() else [path])]
    for path in pages:
        name = path.relative_to(tmp_path)
        assert path.read_text() == (folder / name).read_text(), f"make it again: {' '.join(sources)}"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2_000_000
