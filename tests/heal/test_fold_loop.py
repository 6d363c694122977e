"""Folds in the loop: the next blocks are chosen on the repaired model, and the result is an ordinary plan and fold."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

import streamliner as sl
from close import assert_close
from command import run
from families import make_model
from healing import training_text
from kill import contents, count_lines, finish, kill_when
from places import TINY
from streamliner.errors import HealingError, OutputError
from streamliner.heal.folding import Folding, fold
from streamliner.heal.graft import Graft
from streamliner.heal.healing import prepare_healing
from streamliner.heal.repaired import repaired_model
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.model.session import open_model
from streamliner.runs.files import read_json_lines
from streamliner.runs.journal import Journal
from streamliner.runs.outputs import MARK
from streamliner.runs.reporter import Reporter
from streamliner.settings import PruneSettings, SearchSettings
from streamliner.verbs.fold_loop import FoldLoop
from streamliner.verbs.prune import prune
from streamliner.verbs.search import search_session

FOLD = {"fold": "refit", "fold_tokens": 4096, "data": "python-docs", "sequence_length": 64, "validation_windows": 4}
SEARCH = {"sequence_length": 64, "num_samples": 3, "quiet": True}
FLAGS = [
    *("prune", TINY, "--fold", "refit", "--fold-tokens", "4096", "--data", "python-docs", "--dtype", "float32"),
    *("--sequence-length", "64", "--validation-windows", "4", "--num-samples", "3"),
]


def naive_losses(model, windows):
    """Losses without each block but the first and the last: forwards of the model with that block off its list."""
    layers, found = model.model.layers, {}
    for candidate in range(1, len(layers) - 1):
        model.model.layers = torch.nn.ModuleList([block for at, block in enumerate(layers) if at != candidate])
        with torch.inference_mode():
            each = [model(input_ids=w[None], labels=w[None], use_cache=False).loss.item() for w in windows]
        found[candidate] = sum(each) / len(each)
    model.model.layers = layers
    return found


def test_each_block_is_chosen_by_forwards_of_the_model_as_repaired(tiny, tokenizer):
    dense = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    session, settings = open_model(tiny, tokenizer=tokenizer), SearchSettings(remove=3, **SEARCH)
    prepared = prepare_healing(session, HealSettings(**FOLD), Reporter(quiet=True))
    found = search_session(session, settings, FoldLoop(1, prepared))
    points, alone = found.frontier.points, sl.search(tiny, tokenizer=tokenizer, remove=3, **SEARCH).frontier.points
    assert points[0] == alone[0]
    for before, point in itertools.pairwise(points):
        small = sl.cut(tiny, before.removed)
        repaired = sl.heal(small, dense=tiny, tokenizer=tokenizer, quiet=True, **FOLD)
        kept = [block for block in range(12) if block not in before.removed]
        naive = {kept[at]: loss for at, loss in naive_losses(repaired, found.calibration.windows).items()}
        assert point.candidates == pytest.approx(naive, rel=1e-5)
        assert point.removed == (*before.removed, min(naive, key=naive.__getitem__))
        assert point.loss == pytest.approx(min(naive.values()), rel=1e-5)
    second = alone[1].candidates
    assert max(abs(second[block] - loss) for block, loss in points[1].candidates.items()) > 0.01
    assert all(torch.equal(tensor, dense[name]) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_repaired_model_is_the_graft(tokenizer, family, monkeypatch):
    model, removed = make_model(family, vocab_size=1024), (2, 3)
    settings = HealSettings(**FOLD | {"fold": "gain"})
    text, sample = training_text(tokenizer, settings), torch.arange(8, 40)[None]
    better = iter(range(100, 0, -1))
    monkeypatch.setattr(Folding, "_loss", lambda *args: next(better))
    found = [repaired_model(model, removed, settings, text, lambda message: None) for _ in range(2)]
    graft = Graft(Blocks(model), (), {}, removed)
    assert fold(graft, settings, text, lambda message: None)[0].kept
    with torch.no_grad(), graft.in_place():
        expected = graft.blocks.forward(sample).logits
    for each in found:
        assert_close(each(input_ids=sample).logits, expected)


def test_one_fold_for_all_blocks_is_the_fold_at_the_end(tmp_path):
    healing, search = HealSettings(quiet=True, **FOLD), SearchSettings(remove=2, **SEARCH)
    made = {}
    for every in (None, 2):
        session = open_model(str(TINY))
        made[every] = prune(session, tmp_path / f"{every}", search, healing, PruneSettings(fold_every=every))
    assert made[None].found.frontier.points == made[2].found.frontier.points
    weights = [(tmp_path / f"{every}" / "model.safetensors").read_bytes() for every in made]
    assert weights[0] == weights[1]
    settings = [each.found.plan().settings for each in made.values()]
    assert settings[1] == settings[0] | {"fold": "refit", "fold_every": 2}


def test_sigkill(tmp_path, capsys):
    """Killed in the first, second and third step: the result is the same, and no loss is measured twice."""

    def command(name):
        return [*FLAGS, "--remove", "3", "--fold-every", "1", "--no-verify", "--quiet", "-o", tmp_path / name]

    finish(*command("whole"))
    run_folder = tmp_path / "killed.run"
    journals = [run_folder / "journal.jsonl", *(run_folder / "steps" / step / "journal.jsonl" for step in ("1", "2"))]
    kills = sum(kill_when(lambda at=at: count_lines(at) >= 3, 0.0, *command("killed")) for at in journals)
    assert kills >= 2
    finish(*command("killed"))
    killed, whole = (contents(tmp_path / name) for name in ("killed", "whole"))
    del killed[MARK], whole[MARK]  # it has the seconds that each fold took
    assert killed == whole
    for name in ("frontier.json", "plan.json"):
        assert (run_folder / name).read_bytes() == (tmp_path / "whole.run" / name).read_bytes()
    for journal in journals:
        lines = [line for line in read_json_lines(journal) if "removed" in line]
        measured = [(*removed, "on", at) for line in lines for removed in line["removed"] for at in line["windows"]]
        assert len(measured) == len(set(measured)) > 20
    note = "Repaired (refit) after every removed block; the losses of later blocks are those of the repaired model."
    assert note in (run_folder / "cut" / "README.md").read_text()
    run(capsys, "report", run_folder, "-o", tmp_path / "report.html")
    assert note in (tmp_path / "report.html").read_text()


def test_the_command_line_says_of_what_the_losses_are(capsys, tmp_path):
    out, _ = run(capsys, *FLAGS, "--remove", "2", "--fold-every", "1", "-o", tmp_path / "o")
    assert "Repaired (refit) after every removed block" in " ".join(out.split())
    _, err = run(capsys, *FLAGS, "--remove", "2", "-o", tmp_path / "o", "--overwrite", "--no-verify")
    assert "Continuing" not in err  # without folds in the loop it is another run
    plan = json.loads((tmp_path / "o" / "streamliner.json").read_text())
    assert "fold_every" not in plan["settings"]


def test_another_fold_is_another_run(capsys, tmp_path):
    command = [*FLAGS, "--remove", "2", "-o", tmp_path / "o"]
    run(capsys, *command, "--fold-every", "1")
    for changes in (("--fold-every", "2"), ("--fold-every", "1", "--fold-tokens", "5k"), ()):
        _, err = run(capsys, *command, *changes, "--run", tmp_path / "o.run", "-o", tmp_path / "other", status=2)
        assert "is of another run: folds" in err


def test_a_training_after_the_fold_does_not_make_another_search(tiny, tokenizer):
    def identity(**changes):
        settings = HealSettings(**FOLD | changes)
        return FoldLoop(1, prepare_healing(open_model(tiny, tokenizer=tokenizer), settings, Reporter(True))).identity

    assert identity() == identity(network="block", learning_rate=1e-5, steps=7)
    assert identity() != identity(fold_blocks="later")
    assert identity() != identity(validation_windows=5)


def test_losses_of_models_without_other_blocks_are_not_mixed(tmp_path):
    journal = Journal(tmp_path / "run", {"model": "m"})
    journal.of_step(2, {"removed": [3, 4]}).remember([0], {(1,): [2.0]})
    assert journal.of_step(2, {"removed": [3, 4]}).losses == {(1,): {0: 2.0}}
    with pytest.raises(OutputError, match="removed was"):
        journal.of_step(2, {"removed": [3, 5]})
    again = Journal(tmp_path / "run", {"model": "m"}, overwrite=True)
    assert again.of_step(2, {"removed": [3, 5]}).losses == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fold-every", "1"), "--fold-every has no effect without --fold"),
        (("--fold-every", "1", "--heal"), "--fold-every has no effect without --fold"),
        (("--fold-every", "0", "--fold", "refit"), "--fold-every must be at least 1, not 0"),
        (("--fold-every", "1", "--fold", "refit", "--method", "refine", "--set", "start=p.json"), "Leave out --set"),
    ],
)
def test_mistakes_are_named(capsys, tmp_path, arguments, message):
    assert message in run(capsys, "prune", TINY, "--remove", "2", "-o", tmp_path / "x", *arguments, status=2)[1]
    assert not [*tmp_path.iterdir()]


def test_mistakes_are_named_in_python(tmp_path):
    settings = SearchSettings(remove=2, **SEARCH)
    for healing in (None, dataclasses.replace(HealSettings(**FOLD), fold=None, fold_tokens=None, network="block")):
        with pytest.raises(HealingError, match="without --fold"):
            prune(open_model(str(TINY)), tmp_path / "x", settings, healing, PruneSettings(fold_every=1))
