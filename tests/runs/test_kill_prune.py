"""SIGKILL at any moment leaves no output folder or a whole one; the same command then ends as if undisturbed."""

from __future__ import annotations

from kill import contents, count_lines, finish, kill_when
from places import TINY


def prune(folder):
    return [
        *("prune", TINY, "--remove", "3", "-o", folder / "out", "--quiet"),
        *("--num-samples", "40", "--sequence-length", "128"),
    ]


def test_sigkill(tmp_path):
    (tmp_path / "whole").mkdir()
    finish(*prune(tmp_path / "whole"))
    expected = contents(tmp_path / "whole" / "out")
    frontier = (tmp_path / "whole" / "out.run" / "frontier.json").read_bytes()

    folder = tmp_path / "killed"
    folder.mkdir()
    journal = folder / "out.run" / "journal.jsonl"
    moments = [  # while starting, searching, writing and verifying
        (lambda: True, 0.2),
        (lambda: count_lines(journal) >= 4, 0.0),
        (lambda: count_lines(journal) >= 60, 0.05),
        (lambda: any(folder.glob(".out.partial-*")), 0.0),
        (lambda: any(folder.glob(".out.partial-*/model.safetensors")), 0.0),
        (lambda: any(folder.glob(".out.partial-*/tokenizer.json")), 0.1),
    ]
    killed = 0
    for happened, delay in moments:
        killed += kill_when(happened, delay, *prune(folder))
        if (folder / "out").exists():
            assert contents(folder / "out") == expected
            break
    assert killed >= 4
    if not (folder / "out").exists():
        finish(*prune(folder))
    assert contents(folder / "out") == expected
    assert (folder / "out.run" / "frontier.json").read_bytes() == frontier
    assert sorted(path.name for path in folder.iterdir()) == ["out", "out.run"]
