"""Tasks beyond options and plain text: answers that the model writes, and questions in a chat template."""

from __future__ import annotations

import json

import pytest
import torch

import streamliner as sl
from chats import chatting
from command import run
from places import TINY
from streamliner.cut.memory import cut_model

pytest.importorskip("lm_eval")
OPTIONS = (" is used to with things.", " 1 2 3.")
"""Of the first question of `topics`."""


def mean_loss(model, tokenizer, context, continuation):
    """Of the tokens of the continuation, in nats."""
    ids = tokenizer(context + continuation, return_tensors="pt").input_ids[0]
    first = len(tokenizer(context).input_ids)
    with torch.no_grad():
        logits = model(ids[None]).logits[0, first - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[first:]).item()


@pytest.fixture
def written(tmp_path, tiny, tokenizer):
    """A folder with a task whose answers the model writes; the dense model is right on the first of two questions."""
    question = tokenizer("import os", return_tensors="pt").input_ids
    says = tokenizer.decode(tiny.generate(question, max_new_tokens=3, do_sample=False)[0, question.shape[1] :])
    rows = [{"question": "import os", "answer": says}, {"question": "import re", "answer": "something else"}]
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = folder / "written.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (folder / "written.yaml").write_text(
        f"task: written\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
        "generation_kwargs: {max_gen_toks: 3, until: [no such text], do_sample: false}\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    return folder


def test_a_task_of_written_answers_has_flips_and_stability(tiny, tokenizer, written):
    models = {"cut": cut_model(tiny, range(1, 11))}
    found = sl.evaluate(models, dense=tiny, tokenizer=tokenizer, tasks="written", tasks_path=str(written))
    dense, cut = (model.tasks["written"] for model in found.models)
    assert (dense.metric, dense.metrics["exact_match"], cut.metrics["exact_match"]) == ("exact_match", 0.5, 0)
    compared = found.compared[0].tasks["written"]
    assert (compared.flips.right_wrong, compared.flips.wrong_wrong) == (1, 1)
    assert compared.stability == pytest.approx(0.5)  # without options all questions count the same
    assert "written exact_match" in str(found)


def test_questions_in_a_chat_template(tasks, tiny, tokenizer):
    """Against plain forwards on the conversation; the cache does not mix up questions with and without it."""
    talking = chatting(tokenizer)
    settings = {"tokenizer": talking, "tasks": "topics", "tasks_path": str(tasks), "limit": 2}
    plain, chat = (sl.evaluate(tiny, **settings, apply_chat_template=each).models[0] for each in (False, True))
    question = [{"role": "user", "content": "The with statement"}]
    asked = talking.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    scores = chat.tasks["topics"].answers[0].scores
    assert scores == pytest.approx([mean_loss(tiny, tokenizer, asked, each) for each in OPTIONS], rel=1e-3)
    assert plain.tasks["topics"].answers[0].scores != scores


def test_a_tokenizer_without_a_chat_template_is_refused(capsys, tasks):
    arguments = ["--tasks", "topics", "--tasks-path", tasks, "--apply-chat-template"]
    _, err = run(capsys, "evaluate", TINY, *arguments, status=2)
    assert "tiny-llama has no chat template" in err
    assert "has no effect without --tasks" in run(capsys, "evaluate", TINY, arguments[-1], status=2)[1]
