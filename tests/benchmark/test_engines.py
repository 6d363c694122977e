"""Engines run the models that they are given, and report the memory that these take."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from command import run
from families import make_model
from gguf_files import write_gguf
from places import TINY
from streamliner.benchmark.choose_engine import load_engines
from streamliner.benchmark.engines.transformers import TransformersEngine
from streamliner.benchmark.workload import ON_CPU, Workload, complete_workload
from streamliner.cut.memory import cut_model
from streamliner.errors import EvaluationError, TextError
from streamliner.model.load import load_model
from streamliner.model.session import Session, open_model
from streamliner.model.source import locate
from streamliner.runs.reporter import Reporter
from streamliner.settings import BenchmarkSettings, ModelSettings

SMALL = ["--prompt-tokens", "64", "--context-tokens", "8", "--new-tokens", "4", "--repeats", "3"]


def loaded(model):
    """A model in the engine of transformers."""
    return TransformersEngine(Session.of(model), "cpu", ON_CPU, 1.0, Reporter(quiet=True))


def test_defaults_are_slebs_on_a_gpu():
    usual = BenchmarkSettings()
    assert complete_workload(usual, "cuda:0", 4096) == Workload(2048, 64, 64, 128)
    assert complete_workload(BenchmarkSettings(new_tokens=5), "cpu", 4096).new_tokens == 5
    assert complete_workload(usual, "cpu", 4096).max_positions == 257
    assert complete_workload(usual, "cuda:0", 2047).prompt_tokens == 2047
    asked = BenchmarkSettings(prompt_tokens=3000)
    assert complete_workload(asked, "cuda:0", 2047).prompt_tokens == 3000  # refused later


def test_the_default_prompt_fits_a_short_model(tmp_path):
    """A model of 200 positions on a CPU."""
    shutil.copytree(TINY, tmp_path / "short")
    config = json.loads((TINY / "config.json").read_text()) | {"max_position_embeddings": 200}
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    session = open_model(tmp_path / "short", ModelSettings(device="cpu"))
    assert load_engines([session], BenchmarkSettings(), Reporter(quiet=True))[1].prompt_tokens == 200
    with pytest.raises(TextError, match="--prompt-tokens 201 is more than the 200 positions"):
        load_engines([session], BenchmarkSettings(prompt_tokens=201), Reporter(quiet=True))


def test_cache_bytes_by_hand():
    """6 blocks x keys and values x 2 heads x 8 wide x 4 bytes."""
    engine = loaded(make_model("llama"))
    assert engine.memory_use([list(range(2, 10))]).cache_bytes_per_token == 6 * 2 * 2 * 8 * 4


def test_a_sliding_window_bounds_the_cache():
    """Of 6 layers, one keeps all of 16 tokens and grows, 5 keep 7, as transformers does with a window of 8."""
    model = make_model("gemma3", layer_types=["sliding_attention"] * 5 + ["full_attention"])
    memory = loaded(model).memory_use([list(range(2, 18))])
    of_a_token = 2 * 2 * 8 * 4  # keys and values of 2 heads, 8 wide, 4 bytes
    assert memory.cache_bytes_per_token == (16 + 5 * 7) * of_a_token / 16
    assert memory.cache_bytes_per_further_token == of_a_token


def test_generation_is_greedy_generation():
    model = make_model("llama")
    ids = torch.arange(2, 10)[None]
    expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert loaded(model).generate(ids.tolist(), 6).item() == expected[0, -1].item()


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
    sessions = [open_model(file) for file in gguf_models]
    given = {"prompt_tokens": 16, "batch_size": 2, "context_tokens": 16, "new_tokens": 12}
    engines, workload = load_engines(sessions, BenchmarkSettings(engine="llama.cpp", **given), Reporter(quiet=True))
    assert workload.batch_size == 2
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
        (["--engine", "onnx"], "--engine has no onnx"),
        (["--engine", "llama.cpp"], "runs GGUF files"),
        (["--engine", "vllm", "--device", "cpu"], "Leave out --device"),
    ],
)
def test_engines_that_cannot(capsys, arguments, message):
    assert message in run(capsys, "benchmark", TINY, *arguments, status=2)[1]


def test_vllm_runs_the_same_models(tokenizer, tmp_path):
    """Only where vLLM is installed, which wants an environment of its own. Its heads are at least 32 wide on a CPU."""
    pytest.importorskip("vllm", reason="needs vLLM")
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=1024, **shape, num_hidden_layers=4, initializer_range=0.2))
    tokenizer.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "cut")
    dense.save_pretrained(tmp_path / "dense")
    cut_model(dense, (2,)).save_pretrained(tmp_path / "cut")
    folders = [tmp_path / "dense", tmp_path / "cut"]
    ids = [tokenizer("The value of the expression is").input_ids]
    sessions = [open_model(folder, ModelSettings(dtype="float32")) for folder in folders]
    engines, _ = load_engines(sessions, BenchmarkSettings(engine="vllm", prompt_tokens=16), Reporter(quiet=True))
    for engine, folder in zip(engines, folders, strict=True):
        model = load_model(locate(str(folder)), dtype="float32")
        expected = model.generate(torch.tensor(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False)
        assert engine.generate(ids, 12) == expected[:, len(ids[0]) :].tolist()


def test_vllm_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(EvaluationError, match="Install streamliner and vllm"):
        load_engines([open_model(TINY)], BenchmarkSettings(engine="vllm"), Reporter(quiet=True))


@pytest.mark.parametrize(("engine", "message"), [("llama.cpp", "runs GGUF files"), ("vllm", "a model in memory")])
def test_models_in_memory_need_transformers(engine, message):
    if engine == "llama.cpp":
        pytest.importorskip("xllamacpp", reason="needs the llama-cpp extra")
    session = Session.of(make_model("llama"), name="m")
    with pytest.raises(EvaluationError, match=message):
        load_engines([session], BenchmarkSettings(engine=engine), Reporter(quiet=True))
