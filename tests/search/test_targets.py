"""What the user wants, instead of a number of blocks: small, fast, still good at a task; and what cannot be had."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from command import run
from places import TINY
from streamliner.errors import RemovalError
from streamliner.model.load import load_model
from streamliner.runs.ranks import Ranks
from streamliner.search.plan import read_plan
from streamliner.search.registry import make_method
from streamliner.search.target import size_target, speed_target
from streamliner.settings import SearchSettings
from streamliner.verbs import targets

TEXT = ("--calibration", "python-docs", "--num-samples", "2", "--sequence-length", "32")
"""A short search."""
SLEB = make_method("sleb")


@pytest.fixture
def search(capsys, tmp_path):
    """A search into a folder of `tmp_path`; returns all that it printed."""

    def call(*arguments, name="run", status=0):
        return "".join(run(capsys, "search", TINY, "-o", tmp_path / name, *TEXT, *arguments, status=status))

    return call


def parameters(checkpoint):
    return sum(parameter.numel() for parameter in load_model(checkpoint).parameters())


@pytest.mark.parametrize(("target", "count"), [("1.2M", 2), ("1114080", 2), ("1114079", 3), ("1317215", 1)])
def test_parameters(capsys, search, tmp_path, target, count):
    search("--target-parameters", target)
    assert len(read_plan(tmp_path / "run").removed) == count
    run(capsys, "cut", TINY, "--plan", tmp_path / "run", "-o", tmp_path / "cut", "--no-verify")
    assert parameters(tmp_path / "cut") <= (1_200_000 if target == "1.2M" else int(target))


def test_bytes_are_those_of_the_files_that_a_cut_writes(capsys, search, tmp_path):
    for number, target in enumerate((5_275_000, 4_000_000, 3_000_000)):
        search("--target-bytes", target, name=str(number))
        count = len(read_plan(tmp_path / str(number)).removed)
        sizes = []
        for removed in (count - 1, count):
            out = tmp_path / f"cut-{number}-{removed}"
            blocks = ",".join(map(str, range(1, 1 + removed)))
            if removed:
                run(capsys, "cut", TINY, "--blocks", blocks, "-o", out, "--no-verify")
            sizes.append(((out if removed else TINY) / "model.safetensors").stat().st_size)
        assert sizes[1] <= target < sizes[0]


def test_blocks_of_different_sizes():
    """As many as any choice needs are searched; the first set that is small enough is the last."""
    sizes = [10, 10, 100, 10, 100, 10]

    def size(removed):
        return 50 + sum(each for block, each in enumerate(sizes) if block not in removed)

    found = size_target("at most 180", 180, sizes, 50, SLEB, size)
    assert found.blocks == 3  # the first and the last stay: 10 + 10 + 100 is the least that three take
    assert found.met((2,)) is False
    assert found.met((2, 3)) is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-parameters", "2M"), "has 1,317,216, so it already meets at most 2,000,000 parameters"),
        (("--target-parameters", "1k"), "even without all 10 removable blocks, 301,536 are left"),
        (("--target-bytes", "1kB"), "cannot be reached"),
        (("--target-speedup", "0.9"), "is no speed-up"),
        (("--target-speedup", "1.5", "--remove", "3"), "each say how much to remove"),
        (("--target-accuracy-drop", "2%"), "go together"),
        (("--remove", "2", "--speedup-of", "generation"), "no effect without --target-speedup"),
        (("--remove", "2", "--limit", "3"), "--limit has no effect without --tasks"),
        (("--target-accuracy-drop", "2", "--tasks", "topics"), "is not a percentage"),
        ((), "Say how much to remove"),
    ],
)
def test_what_cannot_be_is_said_before_the_search(search, tmp_path, tasks, arguments, message):
    path = ("--tasks-path", tasks) if "--tasks" in arguments else ()
    assert message in search(*arguments, *path, status=2)
    assert not (tmp_path / "run" / "frontier.json").exists()


def test_speed():
    """Ten seconds, half a second for each of twelve blocks: 1.25x saves two seconds, so four blocks."""
    assert speed_target("", 1.25, 10, 0.5, SLEB, 12).blocks == 4
    assert speed_target("", 1.26, 10, 0.5, SLEB, 12).blocks == 5
    with pytest.raises(RemovalError, match=r"it is 2.00x here, because 40% of the time is spent outside the blocks"):
        speed_target("", 2.1, 10, 0.5, SLEB, 12)


def test_a_speed_is_measured_once_in_a_run(search, tmp_path, monkeypatch):
    """The model may be faster or slower the second time: a run that continues must aim at what it aimed at."""
    arguments = ("--target-speedup", "1.2", "--speedup-of", "generation")
    search(*arguments)
    before = (tmp_path / "run" / "plan.json").read_bytes()
    monkeypatch.setattr(targets, "time_models", None)
    search(*arguments)
    assert (tmp_path / "run" / "plan.json").read_bytes() == before


def test_prune_times_the_result(capsys, tmp_path):
    out, _ = run(capsys, "prune", TINY, "-o", tmp_path / "out", *TEXT, "--target-speedup", "1.2", "--json")
    (compared,) = json.loads(out)["benchmark"]["compared"]
    assert compared["prompt"]["speed_up"] > 0


def test_accuracy_ends_the_search(search, tmp_path, tasks, monkeypatch):
    """The task's accuracy falls to 4 of 8 with the third block; 20 points are allowed."""
    accuracy = {0: 0.9, 1: 0.8, 2: 0.75, 3: 0.5}
    asked = []

    def measured(self, removed):
        asked.append(len(removed))
        return accuracy[len(removed)]

    monkeypatch.setattr(targets.AccuracyBound, "_accuracy", measured)
    arguments = ("--target-accuracy-drop", "20%", "--tasks", "topics", "--tasks-path", tasks)
    text = search(*arguments)
    assert asked == [0, 1, 2, 3]
    assert len(read_plan(tmp_path / "run").removed) == 2
    assert "Accuracy without 3 blocks: 50.0%: more than 20.0% worse." in text


def test_accuracy_is_that_of_evaluate(capsys, search, tmp_path, tasks):
    arguments = ("--target-accuracy-drop", "100%", "--tasks", "topics", "--tasks-path", tasks, "--remove", "2")
    text = search(*arguments)
    removed = ",".join(map(str, read_plan(tmp_path / "run").removed))
    run(capsys, "cut", TINY, "--blocks", removed, "-o", tmp_path / "cut", "--no-verify")
    where = ("--tasks", "topics", "--tasks-path", tasks, "--json")
    for model, said in ((TINY, "dense model on topics: "), (tmp_path / "cut", "without 2 blocks: ")):
        evaluated = json.loads(run(capsys, "evaluate", model, *where)[0])
        (found,) = evaluated["models"]
        assert f"{said}{found['tasks']['topics']['metrics']['acc']:.1%}" in text


def test_a_target_that_the_limits_do_not_allow_is_an_error(search):
    text = search("--target-parameters", "500k", "--max-perplexity-increase", "30%", status=2)
    assert "at most 500,000 parameters is not reached" in text


def test_the_best_plan_for_every_depth(search, tmp_path):
    search("--frontier", "--method", "best", "--remove", "3")
    frontier = json.loads((tmp_path / "run" / "frontier.json").read_text())
    assert frontier["settings"]["every"] is True
    plans = [read_plan(tmp_path / "run" / "plans" / f"{count}.json") for count in (1, 2, 3)]
    assert [len(plan.removed) for plan in plans] == [1, 2, 3]
    assert [plan.loss for plan in plans] == [point["loss"] for point in frontier["points"]]
    assert plans[-1] == read_plan(tmp_path / "run")


def test_refined_everywhere_where_the_last_number_is_not_known(search, tmp_path):
    search("--method", "best", "--max-perplexity-increase", "30%")
    assert json.loads((tmp_path / "run" / "frontier.json").read_text())["settings"]["every"] is True


@pytest.mark.parametrize("target", [{"target_speedup": 1.2}, {"target_accuracy_drop": "2%", "tasks": "topics"}])
def test_what_is_measured_is_refused_in_several_processes(target):
    """Each would measure something else, choose another number of blocks, and wait for the others."""
    session, settings = SimpleNamespace(ranks=Ranks(rank=1, size=2)), SearchSettings(**target)
    measure = {
        False: lambda: targets.find_speed_target(session, SLEB, settings, None, None),
        True: lambda: targets.AccuracyBound(session, None, settings, None),
    }
    with pytest.raises(RemovalError, match="works only in one process"):
        measure["tasks" in target]()
