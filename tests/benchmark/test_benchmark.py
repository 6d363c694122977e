"""`streamliner benchmark`: what it reports fits together. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import json

import pytest
import torch

from command import run
from families import make_model
from gguf_files import write_gguf
from places import TINY
from streamliner import benchmark
from streamliner.benchmark.engines.transformers import Plain
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.errors import EvaluationError, InterruptedByUser, TextError
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model
from streamliner.model.session import ModelSettings, open_session
from streamliner.model.source import locate
from streamliner.runs.reporter import Silent
from streamliner.verbs.cut import cut_to_folder, manual_plan

SMALL = ["--prompt-tokens", "64", "--context-tokens", "8", "--new-tokens", "4", "--repeats", "3"]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):

    folder = tmp_path_factory.mktemp("benchmark") / "cut"
    session = open_session(ModelSettings(str(TINY)))
    cut_to_folder(session, manual_plan(session, (4, 5, 6)), folder)
    return folder


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
    assert "1.33 times fewer blocks" in " ".join(out.split())


class Clock(Plain):
    """Tells times of its own: 1 second, and 2 for each block that runs."""

    def seconds(self, work):
        ran = []
        hooks = [block.mlp.register_forward_hook(lambda *_: ran.append(1)) for block in self.blocks.model.model.layers]
        self.prompt([[5, 6, 7]])
        for hook in hooks:
            hook.remove()
        return 1 + 2.0 * len(ran)


def test_what_the_removed_time_allows_by_hand(monkeypatch, cut):
    """25 s with 12 blocks, 19 with 9, 3 with one: blocks take 24 of 25, and 25 / 19 is what their removal brings."""
    monkeypatch.setattr("streamliner.benchmark.engines.transformers.Plain", Clock)
    sessions = [open_session(ModelSettings(str(folder))) for folder in (TINY, cut)]
    result = benchmark.benchmark_models(sessions, {"prompt_tokens": 8, "new_tokens": 2, "repeats": 2}, None, Silent())
    assert result["models"][0]["prompt"]["seconds"] == [25, 25]
    for kind in ("prompt", "generation"):
        found = result["compared"][0][kind]
        assert found["speed_up"] == found["allowed_by_time"] == pytest.approx(25 / 19)
        assert found["time_in_blocks"] == pytest.approx(24 / 25)


@pytest.mark.parametrize("one_block", [True, False])
@pytest.mark.parametrize(("finished", "rounds"), [(0, None), (1, None), (2, 1), (3, 2)])
def test_ctrl_c_keeps_whole_rounds(monkeypatch, tmp_path, cut, finished, rounds, one_block):
    """A round is six measurements, prompt and generation of two models and of the first block, or four without that."""
    calls = 0
    in_round = 6 if one_block else 4
    stop_at = finished * in_round + in_round - 1  # the first round warms up

    class Stopped(Plain):
        def seconds(self, work):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise InterruptedByUser("Stopped.")
            return float(calls)

    Stopped.one_block = one_block
    monkeypatch.setattr("streamliner.benchmark.engines.transformers.Plain", Stopped)
    sessions, out = [open_session(ModelSettings(str(folder))) for folder in (TINY, cut)], tmp_path / "b.json"
    given = {"prompt_tokens": 8, "new_tokens": 2, "repeats": 5}
    if rounds is None:  # nothing that counts
        with pytest.raises(InterruptedByUser):
            benchmark.benchmark_models(sessions, given, out, Silent())
        assert not out.exists()
        return
    benchmark.benchmark_models(sessions, given, out, Silent())
    result = json.loads(out.read_text())
    assert result["stopped"]
    assert result["settings"]["repeats"] == rounds
    for model in result["models"]:
        for kind in ("prompt", "generation"):
            assert [(second - 1) // in_round for second in model[kind]["seconds"]] == list(range(1, rounds + 1))


def test_ctrl_c_prints_what_was_measured(monkeypatch, capsys, cut):
    measure = benchmark.run._measure

    def stopped(engines, ids, settings, *rest):
        measure(engines, ids, settings, *rest)
        raise InterruptedByUser("Stopped.")

    monkeypatch.setattr("streamliner.verbs.benchmark._measure", stopped)
    out, err = run(capsys, "benchmark", cut, "--dense", TINY, *SMALL, status=130)
    assert "speed-up" in out
    assert "Stopped behind 3 rounds." in err
    out, _ = run(capsys, "benchmark", cut, "--dense", TINY, *SMALL, "--json", status=130)
    assert json.loads(out)["stopped"]


def test_defaults_are_slebs_on_a_gpu():
    assert BenchmarkSettings.usual("cuda:0") == BenchmarkSettings(2048, 64, 64, 128)
    assert BenchmarkSettings.usual("cpu", new_tokens=5, repeats=None).new_tokens == 5
    assert BenchmarkSettings.usual("cpu").longest == 257
    assert BenchmarkSettings.usual("cuda:0", 2047).prompt_tokens == 2047
    assert BenchmarkSettings.usual("cuda:0", 2047, prompt_tokens=3000).prompt_tokens == 3000  # to be refused


def test_the_default_prompt_fits_a_short_model(monkeypatch, tmp_path):
    """A model of 200 positions on a CPU; an engine that must write a token gets one less."""
    import shutil

    shutil.copytree(TINY, tmp_path / "short")
    config = json.loads((TINY / "config.json").read_text()) | {"max_position_embeddings": 200}
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    session = open_session(ModelSettings(str(tmp_path / "short")))
    assert benchmark.engine.open_engines("transformers", [session], {}, Silent())[1].prompt_tokens == 200
    with pytest.raises(TextError, match="--prompt-tokens 201 is more than the 200 positions"):
        benchmark.engine.open_engines("transformers", [session], {"prompt_tokens": 201}, Silent())


def test_models_of_two_precisions_are_refused(cut, tmp_path):
    load_model(locate(str(cut)), dtype="float32").save_pretrained(tmp_path / "wide")
    sessions = [open_session(ModelSettings(str(folder))) for folder in (TINY, tmp_path / "wide")]
    with pytest.raises(EvaluationError, match="bfloat16 and float32"):
        benchmark.benchmark_models(sessions, {}, None, Silent())


def test_without_a_dense_model_nothing_is_compared(capsys, cut):
    result = json.loads(run(capsys, "benchmark", cut, TINY, *SMALL, "--json")[0])
    assert [model["blocks"] for model in result["models"]] == [9, 12]
    assert result["compared"] == []


def test_cache_bytes_by_hand():
    """6 blocks x keys and values x 2 heads x 8 wide x 4 bytes."""
    engine = Plain(Blocks(make_model("llama")))
    assert engine.memory([list(range(2, 10))])["cache_bytes_per_token"] == 6 * 2 * 2 * 8 * 4


def test_a_sliding_window_bounds_the_cache():
    """Of 6 layers, one keeps all of 16 tokens and grows, 5 keep 7, as transformers does with a window of 8."""
    model = make_model("gemma3", layer_types=["sliding_attention"] * 5 + ["full_attention"])
    memory = Plain(Blocks(model)).memory([list(range(2, 18))])
    of_a_token = 2 * 2 * 8 * 4  # keys and values of 2 heads, 8 wide, 4 bytes
    assert memory["cache_bytes_per_token"] == (16 + 5 * 7) * of_a_token / 16
    assert memory["cache_bytes_per_further_token"] == of_a_token


def test_generation_is_greedy_generation():
    model = make_model("llama")
    ids = torch.arange(2, 10)[None]
    expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert Plain(Blocks(model)).generate(ids.tolist(), 6).item() == expected[0, -1].item()


@pytest.fixture(scope="module")
def gguf_models(tmp_path_factory, cut):
    pytest.importorskip("xllamacpp", reason="needs the llama-cpp extra")
    folder = tmp_path_factory.mktemp("gguf")
    return [write_gguf(source, folder / f"{name}.gguf") for source, name in ((TINY, "dense"), (cut, "cut"))]


def test_llama_cpp_runs_the_same_models(gguf_models, cut, tokenizer):
    """What is timed is the model: its greedy text is that of transformers, dense and cut, alone and in a batch."""
    texts = ["The value of the expression is", "If a class has a method"]
    ids = [tokenizer(text).input_ids for text in texts]
    ids = [each[: min(map(len, ids))] for each in ids]
    sessions = [open_session(ModelSettings(str(file))) for file in gguf_models]
    given = {"prompt_tokens": 16, "batch_size": 2, "context_tokens": 16, "new_tokens": 12}
    engines, settings = benchmark.engine.open_engines("llama.cpp", sessions, given, Silent())
    assert settings.batch_size == 2
    for engine, folder in zip(engines, (TINY, cut), strict=True):
        model = load_model(locate(str(folder)), dtype="float32")
        expected = model.generate(torch.tensor(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False)
        written = [tokenizer.decode(row[len(ids[0]) :]) for row in expected]
        assert engine.generate(ids, 12) == written
        assert engine.generate(ids[:1], 12) == written[:1]


def test_llama_cpp_on_the_command_line(capsys, gguf_models):
    dense, cut = gguf_models
    out, _ = run(capsys, "benchmark", cut, "--dense", dense, "--engine", "llama.cpp", *SMALL, "--json")
    result = json.loads(out)
    assert (result["engine"], result["device"]) == ("llama.cpp", "cpu")
    assert [model["blocks"] for model in result["models"]] == [12, 9]
    assert result["models"][1]["weight_bytes"] == cut.stat().st_size
    assert result["compared"][0]["prompt"]["speed_up"] > 0
    assert result["compared"][0]["prompt"]["allowed_by_time"] is None
    out, _ = run(capsys, "benchmark", cut, "--dense", dense, "--engine", "llama.cpp", *SMALL)
    assert "llama.cpp, " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "onnx"], "There is no engine onnx."),
        (["--engine", "llama.cpp"], "runs GGUF files"),
        (["--engine", "vllm", "--device", "cpu"], "leave out --device"),
    ],
)
def test_engines_that_cannot(capsys, arguments, message):
    assert message in run(capsys, "benchmark", TINY, *arguments, status=2)[1]


def test_vllm_runs_the_same_models(tokenizer, tmp_path):
    """Only where vLLM is installed, which wants an environment of its own. Its heads are at least 32 wide on a CPU."""
    pytest.importorskip("vllm", reason="needs vLLM")
    from transformers import LlamaConfig, LlamaForCausalLM

    from streamliner.cut.memory import cut_model

    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=1024, **shape, num_hidden_layers=4, initializer_range=0.2))
    tokenizer.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "cut")
    dense.save_pretrained(tmp_path / "dense")
    cut_model(dense, (2,)).save_pretrained(tmp_path / "cut")
    folders = [tmp_path / "dense", tmp_path / "cut"]
    ids = [tokenizer("The value of the expression is").input_ids]
    sessions = [open_session(ModelSettings(str(folder), dtype="float32")) for folder in folders]
    engines, _ = benchmark.engine.open_engines("vllm", sessions, {"prompt_tokens": 16}, Silent())
    for engine, folder in zip(engines, folders, strict=True):
        model = load_model(locate(str(folder)), dtype="float32")
        expected = model.generate(torch.tensor(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False)
        assert engine.generate(ids, 12) == expected[:, len(ids[0]) :].tolist()


def test_vllm_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(EvaluationError, match="pip install vllm"):
        benchmark.engine.open_engines("vllm", [open_session(ModelSettings(str(TINY)))], {}, Silent())
