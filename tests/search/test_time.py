"""How long a search takes is said before, and a limit of time is kept."""

from __future__ import annotations

import json

import pytest

from command import run
from places import TINY
from streamliner.errors import UserError
from streamliner.fields import seconds
from streamliner.format import duration
from streamliner.measure.deadline import Deadline
from streamliner.measure.pass_time import PassTime, time_pass
from streamliner.measure.probe import Probe
from streamliner.search.estimate import Estimate
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet


def estimate(blocks, calibration, said=None, **times):
    probe = Probe(blocks, calibration, say=[].append if said is None else said.append)
    return Estimate(probe, PassTime(**times), probe.num_windows, forks=True)


def test_the_estimate_counts_what_the_search_then_runs(blocks, calibration):
    """In units of a block on a window: the head costs nothing here, so block forwards are all there is."""
    found = estimate(blocks, calibration, block=1.0, rest=0.0)
    for settings, tolerance in (({}, 1.25), ({"effort": "adaptive"}, 1.6)):
        method, probe = make_method("sleb", settings), Probe(blocks, calibration)
        run_method(probe, method, "sleb", 4)
        ratio = found.seconds(method, 4) / probe.counters.block_forwards
        assert 1 / tolerance < ratio < tolerance, (settings, ratio)


def test_a_pass_is_timed_by_its_parts(blocks, calibration, monkeypatch):
    """On a clock that goes on by a second for each block and by three for the rest; the first forward takes longer."""
    now = [0.0]

    def losses(self, windows, removed):
        assert windows.shape == (1, 64)
        now[0] += 3 + len(blocks) - len(removed) + (9 if now[0] == 0 else 0)
        return [0.0]

    monkeypatch.setattr("streamliner.measure.pass_time.TOKENS", 64)
    monkeypatch.setattr("streamliner.measure.pass_time.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("streamliner.measure.pass_time.PlainPath.losses", losses)
    times = time_pass(blocks, calibration.windows[0])  # of 128 tokens
    assert (times.block, times.rest) == pytest.approx((2.0, 6.0))


def test_a_long_search_names_the_ways_that_take_less(blocks, calibration):
    said = []
    estimate(blocks, calibration, said, block=0.1, rest=0.1).announce(make_method("sleb", {}), 4)
    (line,) = said
    assert "98 s on this machine" in line
    assert "with --method refine" in line
    assert "adaptive" not in line, "four windows know their standard errors too badly"
    many = CalibrationSet(calibration.windows.repeat(4, 1), {})
    estimate(blocks, many, others := [], block=0.1, rest=0.1).announce(make_method("sleb", {}), 4)
    assert "with --search-effort adaptive" in others[0]
    estimate(blocks, calibration, said, block=1e-5, rest=1e-5).announce(make_method("sleb", {}), 4)
    assert len(said) == 1, "a short search needs no estimate"
    estimate(blocks, calibration, said, block=0.1, rest=0.1).announce(make_method("sleb", {}), 4, continues=True)
    assert "what was measured before takes no time now" in said[1]
    estimate(blocks, calibration, said, block=0.1, rest=0.1).announce(make_method("sleb", {}), 4, at_most=True)
    assert "will take at most about 98 s" in said[2]


@pytest.mark.parametrize("share", [0.5, 0.001, 10])
def test_windows_that_fit(blocks, calibration, share):
    found, method = estimate(blocks, calibration, block=0.1, rest=0.1), make_method("refine", {})
    count = found.windows_that_fit(method, 3, share * found.seconds(method, 3))
    assert count == min(4, max(2, int(4 * share)))


@pytest.mark.parametrize("share", [0.01, 0.08, 0.5])
def test_fewer_than_32_windows_are_counted_as_those_of_an_exact_search(blocks, calibration, share):
    many = CalibrationSet(calibration.windows.repeat(32, 1), {})
    found = estimate(blocks, many, block=0.1, rest=0.1)
    auto, exact, adaptive = (make_method("sleb", {"effort": effort}) for effort in ("auto", "exact", "adaptive"))
    seconds = share * found.seconds(exact, 3)
    assert found.windows_that_fit(adaptive, 3, seconds) > found.windows_that_fit(exact, 3, seconds)
    wanted = adaptive if share == 0.5 else exact
    assert found.windows_that_fit(auto, 3, seconds) == found.windows_that_fit(wanted, 3, seconds)


@pytest.mark.parametrize(("method", "settings"), [("sleb", {}), ("refine", {}), ("evolution", {}), ("best", {})])
def test_when_the_time_is_up_the_best_so_far_is_the_answer(blocks, calibration, method, settings):
    said = []
    probe = Probe(blocks, calibration, deadline=Deadline(0.0, say=said.append))
    late = run_method(probe, make_method(method, settings), method, 3)
    assert [len(point.removed) for point in late.points] == [1, 2, 3]
    assert said == ["The time is up: what is left is decided on fewer windows, and the best so far is taken."]
    assert late.ended == "The time limit was reached: what was left then was decided on fewer windows."
    whole = Probe(blocks, calibration)
    in_time = run_method(whole, make_method(method, settings), method, 3)
    assert probe.counters.window_losses < whole.counters.window_losses
    assert late.points[-1].loss == pytest.approx(probe.loss(late.points[-1].removed).mean)
    assert not in_time.ended
    assert in_time.points[-1].loss <= late.points[-1].loss + 1e-6


def test_a_limit_that_is_not_reached_changes_nothing(blocks, calibration):
    plain = run_method(Probe(blocks, calibration), make_method("sleb", {}), "sleb", 3)
    limited = run_method(Probe(blocks, calibration, deadline=Deadline(600.0)), make_method("sleb", {}), "sleb", 3)
    assert [point.removed for point in limited.points] == [point.removed for point in plain.points]
    assert [point.loss for point in limited.points] == [point.loss for point in plain.points]


def test_a_time_limit_takes_fewer_windows_and_a_continued_run_keeps_them(tmp_path, capsys, monkeypatch):
    slow = PassTime(block=0.01, rest=0.02)
    monkeypatch.setattr("streamliner.verbs.search.time_pass", lambda blocks, window: slow)
    command = ("search", TINY, "--remove", 2, "--num-samples", 8, "--sequence-length", 32, "-o", tmp_path / "run")
    _, err = run(capsys, *command, "--time-limit", "4s")
    assert "will take" not in err
    shape = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["window_shape"]
    assert 2 <= shape[0] < 8
    assert f"There is time for {shape[0]} of 8 windows." in err
    monkeypatch.setattr("streamliner.verbs.search.time_pass", lambda blocks, window: PassTime(0.02, 0.04))
    _, err = run(capsys, *command, "--time-limit", "4s")
    assert "Continuing the run" in err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["window_shape"] == shape


def test_the_line_comes_before_the_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("streamliner.verbs.search.time_pass", lambda blocks, window: PassTime(block=0.1, rest=0.1))
    command = ("search", TINY, "--remove", 1, "--num-samples", 2, "--sequence-length", 32, "-o", tmp_path / "run")
    assert "The search will take about 28 s on this machine." in run(capsys, *command)[1]


def test_times_as_people_write_them():
    assert [seconds(text, "--time-limit") for text in ("90s", "10m", "1.5h", 20)] == [90, 600, 5400, 20]
    assert [duration(value) for value in (45, 840, 11_520)] == ["45 s", "14 min", "3.2 h"]
    for wrong in ("soon", "0", "-5m"):
        with pytest.raises(UserError, match="is not a time"):
            seconds(wrong, "--time-limit")


def test_a_deadline_is_over_once_and_says_so_once(monkeypatch):
    said, now = [], [100.0]
    monkeypatch.setattr("streamliner.measure.deadline.time.monotonic", lambda: now[0])
    deadline = Deadline(5.0, say=said.append)
    assert not deadline.is_over()
    now[0] = 105.0
    assert deadline.is_over()
    assert deadline.is_over()
    assert len(said) == 1
    assert not Deadline().is_over()
