"""The docs cannot drift: every verb, flag, method and refused key is in them, and what the README shows runs."""

from __future__ import annotations

import itertools
import json
import math
import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import streamliner as sl
from command import run
from places import TINY
from streamliner.cli import app
from streamliner.cli.renamed import RENAMED
from streamliner.cut.rules import FIELDS
from streamliner.fields import flags_of
from streamliner.heal_settings import BATCH, HealSettings
from streamliner.runs.yaml_config import read_recipe
from streamliner.search.registry import method_names
from streamliner.text.calibration import SEQUENCE_LENGTH

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()
VERBS = get_command(app).commands
TUTORIALS = ("first-model", "heal", "own-method")
RUN = ("README.md", *(f"docs/tutorials/{name}.md" for name in TUTORIALS), "docs/how-to.md")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code(language, text=README):
    """Blocks of code that run on any machine: those that need more have a title that says what."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands_of(blocks):
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("streamliner ")]


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
    known |= {"--prune-layers"}  # llama.cpp's
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


def test_all_rows_of_a_model_are_of_the_same_texts():
    """The dense model's perplexity, as it follows from each row, is the same.

    Within 0.03%: files made of one GGUF file at different times differed by 0.015% (see the log), weights stored in
    bfloat16 by 0.06% and 0.09%, and other text by far more.
    """
    for folder in (ROOT / "docs" / "leaderboard").iterdir():
        rows = [json.loads(file.read_text()) for file in folder.glob("*.json")]
        for text in rows[0]["texts"]:
            found = [row["texts"][text]["perplexity"] / math.exp(row["texts"][text]["increase"]) for row in rows]
            assert found == pytest.approx([found[0]] * len(found), rel=3e-4), (folder.name, text)


def rows_of(module, folder):
    """Names of the entries of a model, whose files must be named as their rows say."""
    for file, row in zip(sorted(folder.glob("*.json")), module["read_rows"](folder), strict=True):
        assert file.stem == f"{row['percent']}-{row['entry']}-{row['seed']}"
        yield row["entry"]


def test_the_table_of_the_readme_is_of_measurements():
    """Each of its figures stands in a file of the leaderboard or of the report on Gemma."""
    rows = [json.loads(file.read_text()) for file in (ROOT / "docs" / "leaderboard").rglob("*.json")]
    found = {shown(t["increase"], t["standard_error"]) for row in rows for t in row["texts"].values()}
    compared = json.loads((ROOT / "docs" / "gemma-3-270m" / "evaluation.json").read_text())["compared"]
    found |= {shown(t["mean"], t["standard_error"]) for each in compared for t in each["loss_behind"].values()}
    figures = re.findall(r"\d\.\d{3} ± \d\.\d{3}", README)
    assert len(figures) == 18
    assert set(figures) <= found


def shown(value, error):
    return f"{value:.3f} ± {error:.3f}"


def test_the_reference_of_settings_is_what_the_code_says():
    module = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    assert module["PAGE"].read_text() == module["page"](), "make it again: python docs/make_reference.py"


def test_the_reference_of_python_has_every_public_name():
    named = re.findall(
        r"^::: (streamliner[\w.]*)$", (ROOT / "docs" / "reference" / "python.md").read_text(), re.MULTILINE
    )
    assert {name.rpartition(".")[2] for name in named} >= {*sl.__all__} - {"__version__", "Blocks"}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_every_method_is_documented():
    text = (ROOT / "docs" / "methods.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE)) == set(method_names())


def test_fields_named_in_the_docs_have_rules():
    text = (ROOT / "docs" / "architectures.md").read_text()
    table = text[text.index("## How the config follows") : text.index("## When weights follow")]
    named = set(re.findall(r"`([a-z_]+)`", table)) - {"decoder_sparse_step"}  # one of several fields, in JOINT
    assert named <= set(FIELDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_a_page_has_its_flags(page):
    if (page.name == "README.md" and page.parent.name == "gemma-3-270m") or page.name == "report.md":
        return  # the commands of an earlier release, as they were typed
    for verb, *arguments in commands_of(re.findall(r"```sh[^\n]*\n(.*?)```", page.read_text(), re.DOTALL)):
        if not verb.startswith("-"):
            known = {o for parameter in VERBS[verb].params for o in (*parameter.opts, *parameter.secondary_opts)}
            known |= {"--help"}
            assert {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)} <= known, verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_budget_on_a_page_is_enough_for_a_step(page):
    """Also with the defaults of a GPU: these commands are run below with other sizes."""
    for arguments in commands_of(re.findall(r"```sh[^\n]*\n(.*?)```", page.read_text(), re.DOTALL)):
        given = dict(pair for pair in itertools.pairwise(arguments) if pair[0].startswith("--"))
        sizes = read_recipe(given.get("--recipe", "paper"), flags_of(HealSettings), {})
        length = int(given.get("--sequence-length", sizes.get("sequence_length", SEQUENCE_LENGTH)))
        batch = int(given.get("--global-batch-size", sizes.get("global_batch_size", BATCH)))
        if "--tokens" in given:
            assert HealSettings(tokens=given["--tokens"]).num_tokens >= length * batch, " ".join(arguments)


SMALLER = {
    ("search", "prune"): ("--num-samples", "2", "--sequence-length", "64"),
    ("benchmark",): ("--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "1"),
    ("evaluate",): ("--sequence-length", "64", "--num-samples", "2", "--no-cache"),
    ("heal",): ("--sequence-length", "64", "--validation-windows", "2", "--fold-tokens", "1k"),
}
TRAINING = ("--tokens", "512", "--global-batch-size", "2", "--micro-batch", "1", "--validation-windows", "2")


@pytest.mark.parametrize("name", RUN)
def test_the_commands_of_a_page_run(capsys, tmp_path, monkeypatch, name):
    """One after the other, on the fixture, with less text: what a reader types works, in this order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = (ROOT / name).read_text()
    for file, source in re.findall(r'```python title="(\w+\.py)"\n(.*?)```', text, re.DOTALL):
        (tmp_path / file).write_text(source)
    (tmp_path / "my.txt").write_text("Words of a text of the reader's own. " * 200)
    if name in ("docs/how-to.md", "docs/tutorials/heal.md"):  # pages that begin with a cut model
        run(capsys, "cut", TINY, "--blocks", "5,6", "-o", "small", "--no-verify", "-q")
    commands = commands_of(code("sh", text))
    assert commands
    for arguments in commands:
        verb = arguments[0]
        if "--config" not in arguments:
            arguments += next((more for verbs, more in SMALLER.items() if verb in verbs), ())
        if {"--heal", "--tokens"} & {*arguments} or (verb == "heal" and "--recipe" in arguments):
            arguments += TRAINING
        if any("--dtype" in parameter.opts for parameter in VERBS[verb].params):
            arguments += ("--dtype", "float32")  # some machines are eighty times slower in bfloat16
        small = {"MODEL": str(TINY), "200MB": "2MB"}
        run(capsys, *(small.get(argument, argument) for argument in arguments))


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = code("python")
    exec(compile(block.replace('"MODEL"', repr(str(TINY))), "README", "exec"), {})
    out = capsys.readouterr().out
    assert "removed  blocks" in out
    assert "Verification" in out
    assert (tmp_path / "OUT" / "model.safetensors").exists()


def test_links_and_targets_exist():
    for file in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("folder", sorted(file.parent for file in (ROOT / "docs").glob("*/report.md")))
def test_a_report_of_real_measurements_is_what_its_files_say(tmp_path, monkeypatch, folder):
    """The pages are made from the files beside them, whose numbers nobody types."""
    from streamliner.report.render import write_report

    monkeypatch.setattr("streamliner.report.render.__version__", "0.1.0")  # the rest does not depend on the release

    runs = sorted(file.parent.name for file in folder.glob("*/frontier.json"))
    sources = [str(folder / name) for name in (*runs, "evaluation.json", "benchmark.json")]
    made = write_report(sources, tmp_path / "report.html")
    pages = [file for path in made for file in (path.iterdir() if path.is_dir() else [path])]
    for path in pages:
        name = path.relative_to(tmp_path)
        assert path.read_text() == (folder / name).read_text(), f"make it again: {' '.join(sources)}"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2_000_000
