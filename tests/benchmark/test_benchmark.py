"""`streamliner benchmark`: what it reports fits together. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import json

import pytest

from command import run
from places import ROOT, TINY
from streamliner.benchmark.choose_engine import BY_NAME
from streamliner.benchmark.engines.transformers import TransformersEngine
from streamliner.cli.console import print_tables
from streamliner.cut.memory import cut_model
from streamliner.errors import EvaluationError, Interrupted
from streamliner.model.load import load_model
from streamliner.model.session import Session, open_model
from streamliner.model.source import locate
from streamliner.runs.reporter import Reporter
from streamliner.settings import ENGINES, BenchmarkSettings
from streamliner.verbs.benchmark import benchmark_models

SMALL = ["--prompt-tokens", "64", "--context-tokens", "8", "--new-tokens", "4", "--repeats", "3"]


def test_report(capsys, tmp_path, cut):
    file = tmp_path / "benchmark.json"
    out, _ = run(capsys, "benchmark", cut, "--dense", TINY, *SMALL, "--dtype", "float32", "--json", "-o", file)
    result = json.loads(out)
    dense, smaller = result["models"]
    assert [(each["blocks"], each["method"]) for each in (dense, smaller)] == [(12, ""), (9, "manual")]
    assert dense["parameters"] == sum(p.numel() for p in load_model(locate(str(TINY))).parameters())
    assert dense["weight_bytes"] > smaller["weight_bytes"]
    assert dense["cache_bytes_per_token"] / smaller["cache_bytes_per_token"] == pytest.approx(12 / 9)
    assert len(dense["prompt"]["seconds"]) == 3
    middle = sorted(dense["prompt"]["seconds"])[1]
    assert dense["prompt"]["tokens_per_second"] == pytest.approx(64 / middle)
    (compared,) = result["compared"]
    assert compared["blocks_ratio"] == pytest.approx(12 / 9)
    assert compared["parameters_ratio"] == pytest.approx(dense["parameters"] / smaller["parameters"])
    ratios = [a / b for a, b in zip(dense["prompt"]["seconds"], smaller["prompt"]["seconds"], strict=True)]
    assert compared["prompt"]["speed_up"] == pytest.approx(sorted(ratios)[1])
    assert not result["stopped"]
    assert json.loads(file.read_text())["models"] == result["models"]
    out, _ = run(capsys, "benchmark", cut, "--dense", TINY, *SMALL)
    assert "prompt of 64 tokens" in out
    assert "cut: 1.33x fewer blocks" in out
    assert "expected" in out


class Clock(TransformersEngine):
    """Its times are made up: 1 second, and 2 for each block that runs."""

    def seconds(self, work):
        ran = []
        hooks = [block.mlp.register_forward_hook(lambda *_: ran.append(1)) for block in self.blocks.model.model.layers]
        self.prompt([[5, 6, 7]])
        for hook in hooks:
            hook.remove()
        return 1 + 2.0 * len(ran)


def test_the_expected_speed_up_by_hand(monkeypatch, cut):
    """25 s with 12 blocks, 19 with 9, 3 with one: blocks take 24 of 25, and their removal can bring 25 / 19."""
    monkeypatch.setitem(BY_NAME, "transformers", Clock)
    settings = BenchmarkSettings(dense=TINY, prompt_tokens=8, new_tokens=2, repeats=2)
    result = benchmark_models([open_model(TINY), open_model(cut)], settings, Reporter(quiet=True))
    assert result.models[0].prompt.seconds == (25, 25)
    (compared,) = result.compared
    for found in (compared.prompt, compared.generation):
        assert found.speed_up == pytest.approx(25 / 19)
        assert found.allowed_by_time == pytest.approx(25 / 19)
        assert found.time_in_blocks == pytest.approx(24 / 25)


@pytest.mark.parametrize("bypasses_blocks", [True, False])
@pytest.mark.parametrize(("finished", "rounds"), [(0, None), (1, None), (2, 1), (3, 2)])
def test_ctrl_c_keeps_whole_rounds(monkeypatch, tmp_path, cut, finished, rounds, bypasses_blocks):
    """A round is six measurements, prompt and generation of two models and of the first block, or four without that."""
    calls = 0
    in_round = 6 if bypasses_blocks else 4
    stop_at = finished * in_round + in_round - 1  # the first round warms up

    class Stopped(TransformersEngine):
        def seconds(self, work):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Interrupted("Stopped.")
            return float(calls)

    if not bypasses_blocks:
        Stopped.only_first_block = None
    monkeypatch.setitem(BY_NAME, "transformers", Stopped)
    sessions, out = [open_model(TINY), open_model(cut)], tmp_path / "b.json"
    settings = BenchmarkSettings(dense=TINY, prompt_tokens=8, new_tokens=2, repeats=5, output=out)
    if rounds is None:  # nothing that counts
        with pytest.raises(Interrupted):
            benchmark_models(sessions, settings, Reporter(quiet=True))
        assert not out.exists()
        return
    benchmark_models(sessions, settings, Reporter(quiet=True))
    result = json.loads(out.read_text())
    assert result["stopped"]
    assert result["settings"]["repeats"] == rounds
    for model in result["models"]:
        for kind in ("prompt", "generation"):
            assert [(second - 1) // in_round for second in model[kind]["seconds"]] == list(range(1, rounds + 1))


def test_ctrl_c_prints_what_was_measured(monkeypatch, capsys, cut):
    """It comes in the third round; a round is six measurements, and the first one warms up."""
    calls = 0

    class Stopped(TransformersEngine):
        def seconds(self, work):
            nonlocal calls
            calls += 1
            if calls % 15 == 0:
                raise Interrupted("Stopped.")
            return super().seconds(work)

    monkeypatch.setitem(BY_NAME, "transformers", Stopped)
    out, err = run(capsys, "benchmark", cut, "--dense", TINY, *SMALL, status=130)
    assert "speed-up" in out
    assert "Stopped after 1 round." in err
    out, _ = run(capsys, "benchmark", cut, "--dense", TINY, *SMALL, "--json", status=130)
    assert json.loads(out)["stopped"]


def test_models_of_two_precisions_are_refused(cut, tmp_path):
    load_model(locate(str(cut)), dtype="bfloat16").save_pretrained(tmp_path / "narrow")
    sessions = [open_model(tmp_path / "narrow"), open_model(TINY)]
    with pytest.raises(EvaluationError, match="bfloat16 and float32"):
        benchmark_models(sessions, BenchmarkSettings(), Reporter(quiet=True))


def test_without_a_dense_model_nothing_is_compared(capsys, cut):
    result = json.loads(run(capsys, "benchmark", cut, TINY, *SMALL, "--json")[0])
    assert [model["blocks"] for model in result["models"]] == [9, 12]
    assert result["compared"] == []


@pytest.fixture
def in_memory(tiny):
    sessions = [Session.of(tiny, name="dense"), Session.of(cut_model(tiny, (4, 5, 6)), name="cut")]
    settings = BenchmarkSettings(dense=TINY, prompt_tokens=16, context_tokens=4, new_tokens=2, repeats=2)
    return sessions, benchmark_models(sessions, settings, Reporter(quiet=True))


def test_models_in_memory(in_memory, tiny):
    sessions, result = in_memory
    assert [model.name for model in result.models] == ["dense", "cut"]
    assert result.device == str(tiny.device)
    assert sessions[0].load().model is tiny
    assert result.compared[0].blocks_ratio == pytest.approx(12 / 9)
    assert result.compared[0].prompt.allowed_by_time is not None


def test_json_has_the_keys_of_results_that_exist(in_memory):
    def keys(value):
        return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None

    written = json.loads((ROOT / "docs" / "gemma-3-270m" / "benchmark.json").read_text())
    found = in_memory[1].to_json()
    assert [key for key in written if key not in ("command", "versions", "hardware")] == list(found)
    assert found["schema_version"] == written["schema_version"]
    assert keys(found["settings"]) == keys(written["settings"])
    for part in ("models", "compared"):
        assert keys(found[part][-1]) == keys(written[part][-1])


def test_it_shows_itself(in_memory, capsys):
    """In Python, in a notebook and on the command line alike."""
    result = in_memory[1]
    text, page = repr(result), result._repr_html_()
    print_tables(result.tables())
    printed = " ".join(capsys.readouterr().out.split())
    assert text.splitlines()[1].split() == ["dense", "cut"]
    for label in ("transformers, float32 on", "prompt, tokens/s", "speed-up", "expected", "cut: 1.33x fewer blocks"):
        assert label in text
        assert label in page
        assert label in printed


def test_every_engine_that_settings_name_is_there():
    assert tuple(BY_NAME) == ENGINES
