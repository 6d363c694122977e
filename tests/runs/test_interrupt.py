"""Ctrl-C ends with a sentence and exit status 130, and keeps what was done."""

from __future__ import annotations

import os
import signal
import time

import pytest

from command import run
from kill import count_lines, finish, start
from places import TINY
from streamliner.errors import Interrupted, interruption


def interrupt(folder, happened, *arguments, how=signal.SIGINT):
    """Start a command, and press Ctrl-C once `happened()`, or send another signal; `folder` gets what it prints."""
    process = start(*arguments, folder=folder)
    while not happened():
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid, how)
    process.join(60)
    err = (folder / "err").read_text()
    assert process.exitcode == 130
    assert "Stopped." in err
    assert "the same command continues" in err
    assert "Traceback" not in err


def test_an_interruption_that_a_library_made_an_import_error(capsys, monkeypatch):
    """As transformers does with a Ctrl-C while it imports a model's module."""

    def interrupted():
        try:
            raise Interrupted("Stopped.")
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module 'LlamaForCausalLM'.") from error

    monkeypatch.setattr("streamliner.verbs.methods.methods", interrupted)
    assert "Stopped." in run(capsys, "methods", status=130)[1]
    assert interruption(ValueError("of another kind")) is None


def test_an_interruption_waits_for_an_import_and_for_a_deletion(capsys, monkeypatch, tmp_path):
    """Otherwise what catches it there goes on with half a module, or Python prints it and goes on."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfor _ in range(10**5): pass\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            seen.append("deleted")

    def during_import():
        import slow_module

        seen.append(slow_module.WHOLE)
        time.sleep(5)

    def during_deletion():
        Deleted()
        time.sleep(5)

    for verb in (during_import, during_deletion):
        monkeypatch.setattr("streamliner.verbs.methods.methods", verb)
        _, err = run(capsys, "methods", status=130)
        assert err.strip() == "Error: Stopped."
    assert seen == [True, "deleted"]


def test_asked_twice_it_does_not_wait(capsys, monkeypatch, tmp_path):
    (tmp_path / "endless_module.py").write_text(
        "import os, signal\nfor _ in range(2): os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("streamliner.verbs.methods.methods", lambda: __import__("endless_module"))
    assert "Stopped." in run(capsys, "methods", status=130)[1]


def test_handlers_of_signals_are_as_before(capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run(capsys, "methods")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_search_keeps_its_journal_and_leaves_no_output(tmp_path, how):
    folder = tmp_path / "x"
    prune = ("prune", TINY, "--remove", "3", "-o", folder / "out", "--quiet")
    text = ("--num-samples", "40", "--sequence-length", "128")
    interrupt(tmp_path, (folder / "out.run" / "journal.jsonl").exists, *prune, *text, how=how)
    assert [path.name for path in folder.iterdir()] == ["out.run"]


def test_a_healing_ends_its_step_and_saves_it(tmp_path):
    finish("cut", TINY, "--blocks", "4,5", "-o", tmp_path / "cut", "-q")
    heal = [
        *("heal", tmp_path / "cut", "--dense", TINY, "-o", tmp_path / "healed", "--steps", "2000"),
        *("--global-batch-size", "2", "--sequence-length", "64", "--validation-windows", "2", "--validations", "1"),
    ]
    history = tmp_path / "healed.run" / "history.jsonl"
    interrupt(tmp_path, lambda: count_lines(history) >= 30, *heal)
    steps, again = count_lines(history) - 1, tmp_path / "again"
    again.mkdir()
    (again / "err").touch()
    process = start(*heal, folder=again)
    while f"after step {steps} of 2000" not in (again / "err").read_text():
        time.sleep(0.01)
        assert process.is_alive()
    process.kill()
    process.join()
