"""Perplexity, tasks and stability against independent computations."""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from command import run
from places import ROOT, TINY
from streamliner.errors import InterruptedByUser, TextError
from streamliner.evaluate.compare import Flips, accuracy_difference, flips
from streamliner.evaluate.perplexity import perplexity
from streamliner.evaluate.stability import Answer, answers, question_weights, stability
from streamliner.model.blocks import Blocks
from streamliner.model.fingerprint import weights_hash
from streamliner.model.load import load_model, load_tokenizer
from streamliner.model.source import locate
from streamliner.text.windows import text_windows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Perplexity


@pytest.fixture
def text(tmp_path):
    from streamliner.text.sources import read_text

    path = tmp_path / "text.txt"
    path.write_text("\n".join(read_text("python-docs:test").documents)[:6000])
    return path


def plain_losses(model, tokenizer, path, window, stride):
    """As anybody would write it with transformers alone."""
    tokens = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    body = window - 1
    losses = []
    for start in range(0, len(tokens) - body + 1, stride):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokens[start : start + body]]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        each = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses.append(each[-stride:].mean().item())
    return losses


@pytest.mark.parametrize("stride", [None, 40])
def test_perplexity_equals_a_plain_loop(tiny, tokenizer, text, stride):
    windows = text_windows(str(text), tokenizer, 128, stride)
    found = perplexity(Blocks(tiny), windows)
    expected = plain_losses(tiny, tokenizer, text, 128, stride or 127)
    assert list(found.per_window) == pytest.approx(expected, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-4)
    assert windows.provenance["predictions"] == len(expected) * (stride or 127)
    assert windows.provenance["bos"]


def test_perplexity_equals_lm_evals_rolling_likelihood_where_definitions_coincide(tiny, tokenizer, tmp_path):
    """A text of one window: lm-eval puts a prefix token in front of it, as the BOS here."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    path = tmp_path / "short.txt"
    path.write_text("The with statement is used to wrap the execution of a block. " * 4)
    tokens = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    windows = text_windows(str(path), tokenizer, len(tokens) + 1)
    found = perplexity(Blocks(tiny), windows)
    lm = huggingface.HFLM(pretrained=tiny, tokenizer=tokenizer, batch_size=1, add_bos_token=False)
    assert lm.prefix_token_id == tokenizer.bos_token_id
    request = type("Request", (), {"args": (path.read_text(),)})
    (likelihood,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    assert found.mean == pytest.approx(-likelihood / len(tokens), rel=1e-5)


def test_windows_that_make_no_sense(tokenizer, text):
    with pytest.raises(TextError, match="too few"):
        text_windows(str(text), tokenizer, 100_000)
    with pytest.raises(TextError, match="--stride must be"):
        text_windows(str(text), tokenizer, 64, 64)


# Stability

DENSE = [
    Answer("0", (1.0, 3.0), True),
    Answer("1", (2.0, 2.0), True),
    Answer("2", (4.0, 1.0, 1.0), False),
]


def turned(answers, *items):
    return [Answer(a.item, a.scores, a.correct != (a.item in items)) for a in answers]


def test_the_worked_example():
    """docs/evaluating.md, by hand: spreads 1, 0 and sqrt(2); weights exp of them, divided by their sum."""
    weights = [math.exp(1), math.exp(0), math.exp(math.sqrt(2))]
    assert [w / sum(question_weights(DENSE)) for w in question_weights(DENSE)] == pytest.approx(
        [w / sum(weights) for w in weights]
    )
    assert stability(DENSE, turned(DENSE, "1")) == pytest.approx(1 - 1 / sum(weights))
    assert stability(DENSE, turned(DENSE, "1")) == pytest.approx(0.8723, abs=5e-5)
    assert stability(DENSE, turned(DENSE, "2")) == pytest.approx(0.4748, abs=5e-5)
    assert flips(DENSE, turned(DENSE, "1")) == Flips(1, 1, 0, 1)


def test_the_same_model_is_stable_and_its_opposite_not():
    assert stability(DENSE, DENSE) == 1
    assert stability(DENSE, turned(DENSE, "0", "1", "2")) == 0


scores = st.floats(-1e300, 1e300, allow_nan=False)
questions = st.lists(st.tuples(st.lists(scores, min_size=1, max_size=5), st.booleans()), min_size=1, max_size=8)


@given(questions, st.data())
def test_stability_grows_with_agreement_and_never_overflows(given_questions, data):
    scaled = [[score * 1e-4 for score in each] for each, _ in given_questions]
    dense = [Answer(str(i), tuple(s), c) for i, (s, (_, c)) in enumerate(zip(scaled, given_questions, strict=True))]
    wrong = data.draw(st.sets(st.sampled_from([a.item for a in dense])))
    fewer = data.draw(st.sets(st.sampled_from(sorted(wrong)))) if wrong else set()
    low, high = stability(dense, turned(dense, *wrong)), stability(dense, turned(dense, *fewer))
    assert 0 <= low <= high <= 1


def test_extreme_scores():
    dense = [Answer("0", (0.0, 1e6), True), Answer("1", (0.0, 1.0), True), Answer("2", (0.0, 900.0), False)]
    assert stability(dense, dense) == 1
    assert stability(dense, turned(dense, "0")) == pytest.approx(0)


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        stability(DENSE, DENSE[:2])


def test_accuracy_difference_by_hand():
    """100 questions, 9 lost and 1 won: -0.08, McNemar's exact p = 2 (1 + 10) / 1024; interval of 10 and 2 of 102."""
    found = accuracy_difference(Flips(60, 9, 1, 30))
    assert found.mean == pytest.approx(-0.08)
    assert found.p_value == pytest.approx(22 / 1024)
    error = math.sqrt((12 / 102 - (8 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((-8 / 102 - 1.96 * error, -8 / 102 + 1.96 * error))
    same = accuracy_difference(Flips(3, 0, 0, 4))
    assert (same.mean, same.p_value) == (0, 1)
    assert same.low < 0 < same.high
    assert accuracy_difference(Flips(5000, 1500, 500, 3000)).p_value == pytest.approx(0, abs=1e-100)
    assert accuracy_difference(Flips(0, 1000, 1000, 0)).p_value == 1


def test_scores_that_are_not_finite_count_as_no_options():
    dense = [Answer("0", (math.inf, 1.0), True), Answer("1", (math.nan, 1.0), True), Answer("2", (2.0, 2.0), False)]
    assert question_weights(dense) == [1, 1, 1]


def sample(**values):
    return {"doc_id": 0, "arguments": [("q", " a"), ("q", " bc")], "filtered_resps": [(-1.0, 0), (-4.0, 0)]} | values


def test_answers_are_of_questions_that_are_right_or_wrong():
    def tokens(context, continuation):
        return len(continuation) - 1

    assert answers([sample(acc=1)], tokens) == [Answer("0", (1.0, 2.0), True)]
    assert answers([sample(acc=0.03)], tokens) == []  # a share of probability: truthfulqa_mc2
    assert answers([sample()], tokens) == []
    assert answers([sample(acc=0, filtered_resps=["12", "13"])], tokens) == [Answer("0", (), False)]
    doubled = sample(acc=1, acc_mutual_info=1, filtered_resps=[(-1.0, 0), (-4.0, 0), (-9.0, 0), (-9.0, 0)])
    assert answers([doubled], tokens) == [Answer("0", (1.0, 2.0), True)]


# Tasks


@pytest.fixture
def tasks(tmp_path):
    """A task of our own: which topic of Python is meant; two options, one much longer."""
    questions = [
        {"question": f"The {word} statement", "choices": [f" is used to {word} things.", " 1 2 3."], "gold": number % 2}
        for number, word in enumerate(("with", "for", "import", "class", "return", "raise", "while", "del"))
    ]
    (tmp_path / "tasks").mkdir()
    file = tmp_path / "tasks" / "topics.jsonl"
    file.write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "tasks" / "topics.yaml").write_text(
        f"task: topics\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    return tmp_path / "tasks"


def test_tasks_equal_lm_eval_run_directly(capsys, tasks, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / "cut", "--quiet")
    arguments = ["--dense", TINY, "--tasks", "topics", "--tasks-path", tasks, "--dtype", "float32", "--json"]
    out, _ = run(capsys, "evaluate", tmp_path / "cut", *arguments)
    result = json.loads(out)
    for number, folder in enumerate((TINY, tmp_path / "cut")):
        source = locate(str(folder))
        lm = HFLM(pretrained=load_model(source, dtype="float32"), tokenizer=load_tokenizer(source), batch_size=1)
        direct = lm_eval.simple_evaluate(
            model=lm, tasks=["topics"], task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0
        )
        ours = result["models"][number]["tasks"]["topics"]
        assert ours["metrics"]["acc"] == direct["results"]["topics"]["acc,none"]
        assert ours["metrics"]["acc_norm"] == direct["results"]["topics"]["acc_norm,none"]
        samples = sorted(direct["samples"]["topics"], key=lambda sample: sample["doc_id"])
        assert [answer["correct"] for answer in ours["answers"]] == [bool(sample["acc"]) for sample in samples]
        tokens = [[len(lm._encode_pair(*pair)[1]) for pair in sample["arguments"]] for sample in samples]
        for answer, sample, counts in zip(ours["answers"], samples, tokens, strict=True):
            expected = [-response[0] / count for response, count in zip(sample["filtered_resps"], counts, strict=True)]
            assert answer["scores"] == pytest.approx(expected, rel=1e-5)
    (compared,) = result["compared"]
    dense, cut = ([Answer(**a) for a in model["tasks"]["topics"]["answers"]] for model in result["models"])
    assert compared["tasks"]["topics"]["stability"] == pytest.approx(stability(dense, cut))
    assert sum(compared["tasks"]["topics"]["flips"].values()) == 8


@pytest.mark.parametrize("gold", ["golden", "question"])
def test_a_question_without_a_right_option_is_refused(capsys, tasks, gold):
    """lm-eval would count every model wrong, and they would be perfectly stable."""
    pytest.importorskip("lm_eval")
    file = tasks / "topics.yaml"
    file.write_text(file.read_text().replace("doc_to_target: gold", f"doc_to_target: {gold}"))
    _, err = run(capsys, "evaluate", TINY, "--tasks", "topics", "--tasks-path", tasks, status=2)
    assert "Question 0 of topics has" in err
    assert "none of its 2 options" in err
    assert "doc_to_target" in err


def test_the_task_of_the_docs_works(capsys, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    docs = (ROOT / "docs" / "evaluating.md").read_text()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "topics.yaml").write_text(docs.partition("```yaml\n")[2].partition("```")[0])
    question = {"question": "1 + 1 =", "choices": [" 2", " 3"], "gold": 0}
    (tmp_path / "tasks" / "topics.jsonl").write_text(json.dumps(question))
    monkeypatch.chdir(tmp_path)
    out, _ = run(capsys, "evaluate", TINY, "--tasks", "topics", "--tasks-path", "tasks", "--json")
    assert len(json.loads(out)["models"][0]["tasks"]["topics"]["answers"]) == 1


def test_lm_evals_bars_are_ours(capfd, monkeypatch, tasks, tmp_path, tiny, tokenizer):
    pytest.importorskip("lm_eval")
    from streamliner.evaluate.tasks import Harness

    harness, seen = Harness(str(tasks)), []
    (task,) = harness.find(["topics"], 5, None)
    harness.run(task, tiny, tokenizer, 2, lambda *pair: seen.append(pair))
    assert seen[-1] == (10, 10)  # five questions with two options
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    monkeypatch.chdir(tmp_path)  # where git would complain
    capfd.readouterr()
    arguments = [TINY, "--tasks", "topics", "--tasks-path", tasks, "--quiet", "--json"]
    out, err = run(capfd, "evaluate", *arguments)
    assert err == ""
    assert len(json.loads(out)["models"][0]["tasks"]["topics"]["answers"]) == 8


def test_a_model_is_measured_once(capsys, text, tmp_path):
    arguments = ["--perplexity", text, "--window", "64", "--max-windows", "2", "--dtype", "float32"]
    first, err = run(capsys, "evaluate", TINY, *arguments, "--json", "-o", tmp_path / "evaluation.json")
    assert "is known" not in err
    again, err = run(capsys, "evaluate", TINY, *arguments, "--json")
    assert "perplexity on" in err
    assert "is known" in err
    assert json.loads(first) == json.loads(again)
    assert "is known" not in run(capsys, "evaluate", TINY, *arguments, "--no-cache")[1]
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["models"] == json.loads(first)["models"]
    assert written["versions"]["torch"] == torch.__version__


def test_the_cache_is_of_the_same_windows_and_config(capsys, text, tmp_path, monkeypatch):
    """Two windows hold the numbers of one twice as long where no BOS stands before each; a config counts too."""
    from streamliner.evaluate import perplexity as module

    monkeypatch.setattr(module, "bos_tokens", lambda tokenizer: [])

    def measured(folder, window, count):
        shape = ["--window", window, "--max-windows", count]
        result = json.loads(run(capsys, "evaluate", folder, "--perplexity", text, *shape, "--json")[0])
        return result["models"][0]["perplexity"][0]["window_losses"]

    assert [len(measured(TINY, window, count)) for window, count in ((64, 4), (128, 2))] == [4, 2]
    shutil.copytree(TINY, tmp_path / "other")
    config = json.loads((TINY / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert measured(tmp_path / "other", 64, 4) != measured(TINY, 64, 4)


def test_each_model_once_and_something_to_compare(capsys, text, tmp_path):
    for name in ("a", "b"):
        run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / name / "m", "--quiet")
    arguments = ["--perplexity", text, "--window", "64", "--max-windows", "2", "--dtype", "float32"]
    a, b = (tmp_path / name / "m" for name in "ab")
    out, _ = run(capsys, "evaluate", a, f"{a}/", b, "--dense", TINY, *arguments)
    assert out.count("nats behind") == 2
    assert out.count("a/m is") == out.count("b/m is") == 1
    for verb in ("evaluate", "benchmark"):
        _, err = run(capsys, verb, TINY, "--dense", TINY, *(arguments if verb == "evaluate" else []), status=2)
        assert "nothing to compare" in err


def test_the_table_compares(capsys, text, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / "cut", "--quiet")
    arguments = ["--perplexity", text, "--window", "64", "--max-windows", "3", "--dtype", "float32"]
    out, _ = run(capsys, "evaluate", tmp_path / "cut", "--dense", TINY, *arguments)
    assert "nats behind the dense model" in " ".join(out.split())
    out, _ = run(capsys, "evaluate", tmp_path / "cut", TINY, *arguments)
    assert "behind" not in out  # nobody said which is dense


def test_samples(capsys, tiny, tokenizer, text):
    arguments = ["--perplexity", text, "--window", "64", "--max-windows", "1", "--samples", "1", "--dtype", "float32"]
    (sample,) = json.loads(run(capsys, "evaluate", TINY, *arguments, "--json")[0])["samples"]
    ids = text_windows(str(text), tokenizer, 32, limit=1).windows
    out = tiny.generate(ids, max_new_tokens=40, do_sample=False)
    assert sample["continuations"] == [tokenizer.decode(out[0, 32:], skip_special_tokens=True)]
    assert sample["prompt"] == tokenizer.decode(ids[0], skip_special_tokens=True)
    assert sample["continuations"][0] in run(capsys, "evaluate", TINY, *arguments)[0]


def test_where_the_result_cannot_go_is_told_before_anything_is_measured(capsys, text, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "old.json").write_text('{"schema_version": 1}')
    for verb in ("evaluate", "benchmark"):
        for place, message in (
            (tmp_path / "notes.txt", "did not write it"),
            (tmp_path / "old.json", "--overwrite"),
            (tmp_path, "is a folder"),
            (tmp_path / "no" / "x.json", "does not exist"),
        ):
            _, err = run(capsys, verb, TINY, "-o", place, status=2)
            assert message in err
            assert "Loading" not in err
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_another_tokenizer_is_refused(capsys, text, tmp_path):
    """Its model would be measured on tokens that mean something else to it."""
    other = shutil.copytree(TINY, tmp_path / "other")
    file = other / "tokenizer.json"
    value = json.loads(file.read_text())
    first, second = list(value["model"]["vocab"])[300:302]
    vocab = value["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(value))
    arguments = ["--perplexity", text, "--window", "64", "--max-windows", "1"]
    assert "has another tokenizer" in run(capsys, "evaluate", other, "--dense", TINY, *arguments, status=2)[1]


def test_mistakes(capsys, tasks):
    pytest.importorskip("lm_eval")
    assert "nothing to evaluate on" in run(capsys, "evaluate", TINY, status=2)[1]
    assert (
        "Did you mean topics?" in run(capsys, "evaluate", TINY, "--tasks", "topicz", "--tasks-path", tasks, status=2)[1]
    )
    assert (
        "There is no folder"
        in run(capsys, "evaluate", TINY, "--tasks", "x", "--tasks-path", tasks / "nowhere", status=2)[1]
    )


@pytest.mark.parametrize(
    ("flag", "needs"),
    [
        ("--max-windows", "--perplexity"),
        ("--stride", "--perplexity"),
        ("--limit", "--tasks"),
        ("--num-fewshot", "--tasks"),
        ("--draft-tokens", "--as-draft-for"),
    ],
)
def test_a_flag_that_changes_nothing_is_refused(capsys, flag, needs):
    """It was meant for something that is not measured."""
    arguments = ["--samples", "1", flag, "5"]
    _, err = run(capsys, "evaluate", TINY, *arguments, status=2)
    assert f"{flag} changes nothing without {needs}" in err


def test_one_changed_weight_tells_models_apart(tiny):
    before = weights_hash(tiny)
    weight = tiny.model.layers[5].mlp.up_proj.weight.data
    kept = weight[7, 11].item()
    weight[7, 11] += 0.001
    assert weights_hash(tiny) != before
    weight[7, 11] = kept
    assert weights_hash(tiny) == before


def test_tasks_are_measured_once(capsys, tasks, tmp_path, monkeypatch):
    """And anew when the tokenizer does other things with the same words."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["--tasks", "topics", "--tasks-path", tasks]
    first = run(capsys, "evaluate", TINY, *arguments)
    assert "is known" not in first[1]
    second = run(capsys, "evaluate", TINY, *arguments)
    assert "topics is known" in second[1]
    assert first[0] == second[0]
    other = shutil.copytree(TINY, tmp_path / "other")
    file = other / "tokenizer.json"
    value = json.loads(file.read_text())
    value["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(value))
    assert "topics is known" not in run(capsys, "evaluate", other, *arguments)[1]


def test_ctrl_c_while_questions_load_is_no_missing_network(tasks, monkeypatch):
    pytest.importorskip("lm_eval")
    from streamliner.evaluate.tasks import Harness

    def interrupted(names):
        raise InterruptedByUser("Stopped.", "")

    harness = Harness(str(tasks))
    monkeypatch.setattr(harness._manager, "load", interrupted)
    with pytest.raises(InterruptedByUser):
        harness.find(["topics"], None, None)


def test_weights_are_told_apart_by_saved_buffers_too():
    """Some families keep a scale of each layer in one; what is not saved follows from the config."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("scale", torch.ones(1))
    model.register_buffer("table", torch.ones(1), persistent=False)
    before = weights_hash(model)
    model.table.fill_(2)
    assert weights_hash(model) == before
    model.scale.fill_(2)
    assert weights_hash(model) != before


# As a draft


def test_a_model_is_its_own_perfect_draft(tiny, calibration):
    from streamliner.evaluate.draft import acceptance, write_texts

    blocks = Blocks(tiny)
    for sampled in (False, True):
        texts = write_texts(blocks, calibration.windows[:2, :16], 12, sampled=sampled)
        found = acceptance(blocks, blocks, texts, 12, sampled=sampled)
        assert found.rate == pytest.approx(1, abs=1e-5)
        assert found.tokens_per_verification[4] == pytest.approx(5, abs=1e-4)
        assert found.positions == 24


def test_a_padded_vocabulary_is_the_same_vocabulary(tiny, calibration):
    """Models of a family pad one vocabulary to different widths; words beyond the other's are no proposals."""
    from streamliner.evaluate.draft import acceptance, write_texts

    padded = copy.deepcopy(tiny)
    padded.resize_token_embeddings(tiny.config.vocab_size + 64, mean_resizing=False)
    texts = write_texts(Blocks(tiny), calibration.windows[:2, :16], 8, sampled=True)
    found = acceptance(Blocks(tiny), Blocks(padded), texts, 8, sampled=True)
    assert found.rate == pytest.approx(1, abs=1e-5)
    assert found.standard_error == pytest.approx(0, abs=1e-5)


def test_prompts_lie_evenly_over_the_text(tokenizer, text):
    from streamliner.runs.reporter import Silent
    from streamliner.verbs.evaluate import SHORT, _prompts

    windows = text_windows(str(text), tokenizer, SHORT).windows
    found = _prompts(str(text), tokenizer, 3, Silent())
    assert torch.equal(found, windows[[0, (len(windows) - 1) // 2, len(windows) - 1]])
    assert len(_prompts(str(text), tokenizer, 10_000, Silent())) == len(windows)


def test_a_parent_writes_its_own_words(tiny, calibration):
    """Whatever its generation config says of ends, penalties and temperatures."""
    from streamliner.evaluate.draft import write_texts

    prompt = calibration.windows[:1, :16]
    plain = prompt
    for _ in range(12):
        plain = torch.cat([plain, tiny(plain).logits[:, -1:].argmax(-1)], 1)
    own = tiny.generation_config
    own.eos_token_id, own.repetition_penalty, own.temperature = plain[0, 18].item(), 5.0, 0.1
    assert torch.equal(write_texts(Blocks(tiny), prompt, 12, sampled=False), plain)
    sampled = write_texts(Blocks(tiny), prompt.repeat(2, 1), 12, sampled=True)
    assert sampled.shape == (2, 28)
    assert not torch.equal(sampled[0], sampled[1])  # another seed for each
    assert tiny.generation_config is own


def test_acceptance_equals_a_plain_count(tiny, calibration):
    """Greedy: both models are run on each beginning of the parent's text, one at a time."""
    from streamliner.cut.memory import cut_model
    from streamliner.evaluate.draft import acceptance, write_texts

    smaller = cut_model(tiny, (4,))
    prompt = calibration.windows[:1, :32]
    texts = write_texts(Blocks(tiny), prompt, 40, sampled=False)
    found = acceptance(Blocks(tiny), Blocks(smaller), texts, 40, sampled=False)
    plain = tiny.generate(prompt, max_new_tokens=40, min_new_tokens=40, do_sample=False)
    kept = torch.tensor(
        [[smaller(plain[:, :end]).logits[0, -1].argmax().item() == plain[0, end].item() for end in range(32, 72)]]
    ).double()
    assert found.rate == pytest.approx(kept.mean().item())
    row, places = kept[0].tolist(), range(40 - 8 + 1)
    in_a_row = [next((n for n in range(4) if not row[place + n]), 4) for place in places]
    assert found.tokens_per_verification[4] == pytest.approx(1 + sum(in_a_row) / len(places))
    assert 0 < found.rate < 1


def test_tokens_per_verification_by_hand():
    """Kept or not: 1 1 0. Two proposed: from the first place both are kept (3 tokens), from the second one (2)."""
    from streamliner.evaluate.draft import tokens_per_verification

    assert tokens_per_verification(torch.tensor([[1.0, 1.0, 0.0]]), 2, 2) == 2.5
    table = torch.rand(3, 12).double()
    found = [tokens_per_verification(table, proposed, 8) for proposed in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert tokens_per_verification(torch.tensor([[0.5, 0.5]]), 2, 2) == 1 + 0.5 + 0.25


def test_draft_on_the_command_line(capsys, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4", "-o", tmp_path / "cut", "--quiet")
    arguments = [
        "--dense",
        TINY,
        "--as-draft-for",
        TINY,
        "--draft-prompts",
        "2",
        "--draft-tokens",
        "8",
        "--dtype",
        "float32",
        "--json",
    ]
    out, _ = run(capsys, "evaluate", tmp_path / "cut", *arguments)
    (draft,) = json.loads(out)["drafts"]  # not of the dense model, which is its own parent
    assert draft["model"] == str(tmp_path / "cut")
    assert 0 < draft["greedy"]["acceptance_rate"] <= 1
    assert 1 < draft["sampled"]["tokens_per_verification"]["4"] <= 5
