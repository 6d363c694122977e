"""Tasks: the same numbers as lm-eval itself, and clear errors."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from command import run
from places import ROOT, TINY
from streamliner.errors import Interrupted
from streamliner.evaluate.stability import Answer, stability
from streamliner.evaluate.tasks import Harness
from streamliner.model.load import load_model, load_tokenizer
from streamliner.model.source import locate

lm_eval = pytest.importorskip("lm_eval")


def test_tasks_equal_lm_eval_run_directly(capsys, tasks, tmp_path, tokenizer):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def count(context, continuation):
        return len(tokenizer(context + continuation).input_ids) - len(tokenizer(context).input_ids)

    run(capsys, "cut", TINY, "--blocks", "4,5", "-o", tmp_path / "cut", "--quiet")
    arguments = ["--dense", TINY, "--tasks", "topics", "--tasks-path", tasks, "--dtype", "float32", "--json"]
    out, _ = run(capsys, "evaluate", tmp_path / "cut", *arguments)
    result = json.loads(out)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)  # to list lm-eval's own takes seconds
    for number, folder in enumerate((TINY, tmp_path / "cut")):
        source = locate(str(folder))
        lm = HFLM(pretrained=load_model(source, dtype="float32"), tokenizer=load_tokenizer(source), batch_size=1)
        direct = lm_eval.simple_evaluate(model=lm, tasks=["topics"], task_manager=manager, bootstrap_iters=0)
        ours = result["models"][number]["tasks"]["topics"]
        assert ours["metrics"]["acc"] == direct["results"]["topics"]["acc,none"]
        assert ours["metrics"]["acc_norm"] == direct["results"]["topics"]["acc_norm,none"]
        samples = sorted(direct["samples"]["topics"], key=lambda sample: sample["doc_id"])
        assert [answer["correct"] for answer in ours["answers"]] == [bool(sample["acc"]) for sample in samples]
        tokens = [[count(*pair) for pair in sample["arguments"]] for sample in samples]
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
    file = tasks / "topics.yaml"
    file.write_text(file.read_text().replace("doc_to_target: gold", f"doc_to_target: {gold}"))
    _, err = run(capsys, "evaluate", TINY, "--tasks", "topics", "--tasks-path", tasks, status=2)
    assert "Question 0 of topics has" in err
    assert "none of its 2 options" in err
    assert "doc_to_target" in err


def test_the_task_of_the_docs_works(capsys, tmp_path, monkeypatch):
    docs = (ROOT / "docs" / "evaluating.md").read_text()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "topics.yaml").write_text(docs.partition("```yaml\n")[2].partition("```")[0])
    question = {"question": "1 + 1 =", "choices": [" 2", " 3"], "gold": 0}
    (tmp_path / "tasks" / "topics.jsonl").write_text(json.dumps(question))
    monkeypatch.chdir(tmp_path)
    out, _ = run(capsys, "evaluate", TINY, "--tasks", "topics", "--tasks-path", "tasks", "--json")
    assert len(json.loads(out)["models"][0]["tasks"]["topics"]["answers"]) == 1


def test_lm_evals_bars_are_ours(capfd, monkeypatch, tasks, tmp_path, tiny, tokenizer):
    harness, seen = Harness(str(tasks)), []
    (task,) = harness.find(["topics"], 5, None)
    harness.run(task, tiny, tokenizer, lambda *pair: seen.append(pair), batch_size=2)
    assert seen[-1] == (10, 10)  # five questions with two options
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    monkeypatch.chdir(tmp_path)  # where git would complain
    capfd.readouterr()
    arguments = [TINY, "--tasks", "topics", "--tasks-path", tasks, "--quiet", "--json"]
    out, err = run(capfd, "evaluate", *arguments)
    assert err == ""
    assert len(json.loads(out)["models"][0]["tasks"]["topics"]["answers"]) == 8


def test_tasks_are_measured_once(capsys, tasks, tmp_path):
    """And again when the tokenizer splits the same text differently."""
    arguments = ["--tasks", "topics", "--tasks-path", tasks]
    first = run(capsys, "evaluate", TINY, *arguments)
    assert "from the cache" not in first[1]
    second = run(capsys, "evaluate", TINY, *arguments)
    assert "topics: from the cache" in second[1]
    assert first[0] == second[0]
    other = shutil.copytree(TINY, tmp_path / "other")
    file = other / "tokenizer.json"
    value = json.loads(file.read_text())
    value["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(value))
    assert "topics: from the cache" not in run(capsys, "evaluate", other, *arguments)[1]


def test_ctrl_c_while_questions_load_is_not_taken_for_a_missing_network(tasks, monkeypatch):
    def interrupted(manager, names):
        raise Interrupted("Stopped.")

    harness = Harness(str(tasks))
    monkeypatch.setattr("lm_eval.tasks.TaskManager.load", interrupted)
    with pytest.raises(Interrupted):
        harness.find(["topics"], None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on"),
        (["--tasks", "topicz", "--tasks-path", "tasks"], "Did you mean topics?"),
        (["--tasks", "x", "--tasks-path", "nowhere"], "There is no folder"),
    ],
)
def test_mistakes(capsys, tasks, monkeypatch, arguments, message):
    monkeypatch.chdir(tasks.parent)
    assert message in run(capsys, "evaluate", TINY, *arguments, status=2)[1]


@pytest.mark.parametrize("on_cpu", [8, "auto"])
def test_as_many_options_at_once_as_fit(capsys, monkeypatch, tasks, on_cpu):
    """lm-eval tries how many fit, for a GPU; here the CPU stands for one. What it prints is not part of the result."""
    from lm_eval.models.huggingface import HFLM

    arguments = ["evaluate", TINY, "--tasks", "topics", "--tasks-path", tasks, "--no-cache", "--json", "--batch-size"]
    one = json.loads(run(capsys, *arguments, "1")[0])
    sizes = []
    original = HFLM._model_call
    monkeypatch.setattr(
        HFLM,
        "_model_call",
        lambda lm, inputs, *more, **keywords: sizes.append(len(inputs)) or original(lm, inputs, *more, **keywords),
    )
    monkeypatch.setattr(sys.modules[Harness.__module__], "ON_CPU", on_cpu)  # `streamliner.evaluate` is a function
    out, _ = run(capsys, *arguments, "auto")
    assert max(sizes) == (8 if on_cpu == 8 else 64)
    together = json.loads(out)
    assert together["settings"]["batch_size"] == "auto"
    scores = [
        [each["scores"] for each in found["models"][0]["tasks"]["topics"]["answers"]] for found in (one, together)
    ]
    assert [number for each in scores[1] for number in each] == pytest.approx(
        [number for each in scores[0] for number in each], rel=1e-4
    )
