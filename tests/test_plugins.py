"""Plug-ins: each example works as installed, and one that is broken is in nobody's way."""

from __future__ import annotations

import json
import sys

import pytest

from command import run
from healing import objective_of
from packages import install, install_examples
from places import TINY
from streamliner.benchmark.choose_engine import BY_NAME, engine_class
from streamliner.errors import MethodError, PluginError, UserError
from streamliner.heal.networks.make import FEED_FORWARDS, network_class
from streamliner.heal.networks.plugin_network import CARRIED, missing_names
from streamliner.heal_settings import HealSettings
from streamliner.plugins import KINDS, plugins
from streamliner.report.read import Results, Run
from streamliner.report.render import make_sections
from streamliner.report.sections.plugin_sections import plugin_sections
from streamliner.runs.folder import environment
from streamliner.search.registry import method_class
from streamliner.settings import BenchmarkSettings
from streamliner.verbs.methods import methods

SHORT = ("--num-samples", "2", "--sequence-length", "32")
GROUPS = {kind: f"streamliner.{group}" for group, kind in KINDS.items()}
PLANS = (("a", [3, 4]), ("b", [4, 5]))
LOADERS = {"method": method_class, "network": network_class, "engine": engine_class}


@pytest.fixture
def examples(tmp_path, monkeypatch):
    install_examples(tmp_path / "packages", monkeypatch)
    yield
    for name in [name for name in sys.modules if name.startswith("streamliner_examples")]:
        del sys.modules[name]


@pytest.mark.usefixtures("examples")
def test_the_example_method_is_searched_with(capsys, tmp_path):
    run(capsys, "search", TINY, "--method", "evenly", "--remove", "2", *SHORT, "-o", tmp_path / "r", "-q")
    frontier = json.loads((tmp_path / "r" / "frontier.json").read_text())
    assert frontier["method"] == "evenly"
    assert [point["removed"] for point in frontier["points"]] == [[6], [3, 8]]
    assert json.loads((tmp_path / "r" / "run.json").read_text())["versions"]["streamliner-examples"] == "1.0"


@pytest.mark.usefixtures("examples")
def test_the_example_section_is_in_the_report():
    runs = [
        Run(name, {"run": {"search": {"method": name}}, "plan": {"removed": removed}}, []) for name, removed in PLANS
    ]
    (section,) = plugin_sections(Results(runs))
    assert section.title == "Where the searches agree"
    assert section.tables == [[["block", "plans that remove it"], ["4", "2 of 2"], ["3", "1 of 2"], ["5", "1 of 2"]]]
    assert not plugin_sections(Results(runs[:1]))


@pytest.mark.usefixtures("examples")
def test_the_example_network_is_carried_in_the_checkpoint(capsys, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / "cut", "--no-verify", "-q")
    budget = ("--steps", "2", "--global-batch-size", "1", "--sequence-length", "32", "--validation-windows", "1")
    out, _ = run(
        capsys, "heal", tmp_path / "cut", "-o", tmp_path / "healed", "--network", "bottleneck", *budget, "--json"
    )
    assert json.loads(out)["verification"]["cached_generation"], "it was reloaded with the code that it carries"
    code = (tmp_path / "healed" / "modeling_streamliner.py").read_text()
    assert "class Bottleneck(FeedForward):" in code
    assert "streamliner_examples" not in code
    assert "import streamliner" not in code


@pytest.mark.usefixtures("examples")
def test_the_example_engine_times_models(capsys):
    small = ("--prompt-tokens", "8", "--context-tokens", "4", "--new-tokens", "2", "--repeats", "1")
    result = json.loads(run(capsys, "benchmark", TINY, "--engine", "generate", *small, "--json")[0])
    assert result["engine"] == "generate"
    assert result["models"][0]["generation"]["tokens_per_second"] > 0
    assert result["models"][0]["weight_bytes"] > 2e6


@pytest.mark.usefixtures("examples")
def test_methods_lists_every_kind_with_its_package(capsys):
    found = [(each["kind"], each["name"]) for each in methods() if each["package"] == "streamliner-examples 1.0"]
    assert found == [("method", "evenly"), ("network", "bottleneck"), ("engine", "generate"), ("section", "agreement")]
    assert not [each for each in methods() if "error" in each]
    out, _ = run(capsys, "methods")
    assert "bottleneck  (network of the package streamliner-examples 1.0)" in out
    assert "evenly" in run(capsys, "methods", "-q")[0].split()
    with pytest.raises(UserError, match="Did you mean bottleneck"):
        HealSettings(network="botleneck")
    with pytest.raises(MethodError, match="Did you mean evenly"):
        method_class("evenli")


def broken(tmp_path, monkeypatch, kind, value, name="acme-thing", source="raise ValueError('no such chip')"):
    install(tmp_path / "p", monkeypatch, "acme", {GROUPS[kind]: {name: value}}, {"acme_broken": source})
    sys.modules.pop("acme_broken", None)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_plugin_that_fails_to_import_is_named_where_it_is_used(tmp_path, monkeypatch, kind):
    broken(tmp_path, monkeypatch, kind, "acme_broken:Thing")
    with pytest.raises(PluginError, match=f"{kind} acme-thing of the package acme 1.0.*ValueError: no such chip"):
        LOADERS[kind]("acme_thing")
    (listed,) = (each for each in methods() if each["package"] == "acme 1.0")
    assert "pip uninstall acme" in listed["error"]
    for name, loader in (("sleb", method_class), ("ffn", network_class), ("transformers", engine_class)):
        assert loader(name)
    HealSettings(network="ffn")
    BenchmarkSettings(engine="vllm")


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("source", ["Thing = 3", "class Thing: pass"])
def test_a_plugin_that_is_something_else_is_refused(tmp_path, monkeypatch, kind, source):
    broken(tmp_path, monkeypatch, kind, "acme_broken:Thing", source=source)
    with pytest.raises(PluginError, match=r"acme-thing of the package acme 1.0 is not a"):
        LOADERS[kind]("acme-thing")


@pytest.mark.parametrize(("kind", "name"), [("method", "sleb"), ("network", "ffn"), ("engine", "vllm")])
def test_a_name_of_streamliner_is_refused(tmp_path, monkeypatch, capsys, kind, name):
    broken(tmp_path, monkeypatch, kind, "acme_broken:Thing", name)
    with pytest.raises(PluginError, match=f"{name} is the name of a {kind} in streamliner and in acme 1.0"):
        LOADERS[kind](name)
    assert f"{name} is the name of a {kind}" in run(capsys, "methods")[0]
    others = {"method": "best", "network": "swiglu", "engine": "transformers"}
    assert LOADERS[kind](others[kind])


def test_two_packages_with_one_name_are_refused(tmp_path, monkeypatch):
    for number in "12":
        install(tmp_path / number, monkeypatch, f"acme{number}", {GROUPS["method"]: {"twin": "nowhere:Twin"}})
    with pytest.raises(PluginError, match=r"in acme1 1.0 and in acme2 1.0"):
        method_class("twin")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('no such chip')", "cannot be loaded: ValueError: no such chip"),
        ("def Thing(results): 1 / 0", "failed: ZeroDivisionError"),
        ("def Thing(results): return 3", "did not return a list of Section"),
        ("Thing = 3", "is not a function"),
    ],
)
def test_a_broken_section_says_so_and_the_report_is_written(tmp_path, monkeypatch, source, message):
    broken(tmp_path, monkeypatch, "section", "acme_broken:Thing", source=source)
    titles = {section.title: section.text for section in make_sections(Results([Run("r", {"run": {}}, [])]))}
    assert message in titles["acme-thing"][0]
    assert len(titles) > 1


def test_what_a_network_may_use_is_what_a_checkpoint_has(tmp_path, monkeypatch):
    from streamliner.heal import custom_code

    model, config = ("PreTrainedModel", "transformers"), ("PretrainedConfig", "transformers")
    head = custom_code.HEADER.format(model=model[0], model_module=model[1], config=config[0], config_module=config[1])
    names: dict[str, object] = {}
    exec(head, names)
    assert set(CARRIED) <= {*names, "FeedForward"}
    text = "class A(FeedForward):\n def f(self, x, z=1):\n  from math import pi as p\n  return [p * y for y in x]\n"
    assert missing_names(text) == []
    assert missing_names(text.replace("z=1", "z=math.pi").replace("A(F", "A(Base, F")) == ["Base", "math"]
    source = "import math\nfrom streamliner.heal.networks.feed_forward import FeedForward\n\n\n"
    source += "class Thing(FeedForward):\n    scale = math.pi\n"
    broken(tmp_path, monkeypatch, "network", "acme_broken:Thing", source=source)
    with pytest.raises(PluginError, match=r"uses math, and a checkpoint carries the class alone"):
        network_class("acme-thing")


def test_nothing_is_installed_with_the_tests():
    assert not [plugin for kind in KINDS.values() for plugin in plugins(kind)]
    assert FEED_FORWARDS.keys().isdisjoint(BY_NAME)
    assert "streamliner-examples" not in environment()["versions"]


@pytest.mark.usefixtures("examples")
def test_the_example_network_starts_as_a_bypass(tiny):
    (network,) = objective_of(tiny, (4, 5), network="bottleneck").networks.values()
    assert type(network).__name__ == "Bottleneck"
    assert not network.down_proj.weight.any()
