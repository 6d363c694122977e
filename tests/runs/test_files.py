"""Files and folders are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest

from streamliner.errors import OutputError
from streamliner.runs.files import (
    append_json_line,
    drop_unfinished_line,
    read_json_lines,
    write_json,
    write_text,
    write_whole,
)
from streamliner.runs.outputs import MARK, check_output, check_result_file, output_folder


@pytest.fixture
def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail_halfway():
        with write_whole(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fail_halfway()
    assert path.read_text() == "old"
    with write_whole(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_temporary_files_of_killed_processes_go_and_others_stay(tmp_path):
    for name, age in (
        (".a.json.tmp-1", 7200),
        (".a.json.tmp-2", 60),
        (".a.json.backup", 7200),
        (".b.json.tmp-3", 7200),
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_text(tmp_path / "a.json", "new")
    assert names(tmp_path) == sorted(["a.json", ".a.json.tmp-2", ".a.json.backup", ".b.json.tmp-3"])


def test_json_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5], "b": (math.inf,)})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [None, 1.5], "b": [None]}
    assert text.endswith("}\n")


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    drop_unfinished_line(path)
    assert not path.exists()
    append_json_line(path, {"step": 1})
    path.write_text(path.read_text() + '{"ste')
    assert read_json_lines(path) == [{"step": 1}]
    drop_unfinished_line(path)
    append_json_line(path, {"step": 2})
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_an_output_folder_appears_whole_or_not_at_all(tmp_path, dead_pid):
    (tmp_path / f".out.partial-{dead_pid}").mkdir()

    def fail_halfway():
        with output_folder(tmp_path / "out") as partial:
            (partial / "a").touch()
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fail_halfway()
    assert names(tmp_path) == []
    with output_folder(tmp_path / "out") as partial:
        (partial / MARK).write_text("{}")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path / "out") == [MARK]


def test_an_output_taken_away_by_a_killed_run_gets_its_name_again(tmp_path):
    """Killed between two renamings: the old one is hidden, and the new one has not its name yet."""
    for name, text in ((".out.old-a1", "old"), (".out.partial-a1", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / MARK).write_text(text)
    check_output(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / MARK).read_text() == "old"
    (tmp_path / ".out.old-a2").mkdir()  # killed a moment later: only this was not removed
    with output_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / MARK).write_text("newer")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / MARK).read_text() == "newer"


def test_only_a_folder_of_ours_is_replaced_and_only_if_asked_to(tmp_path):
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder, name in ((ours, MARK), (other, "thesis.txt")):
        folder.mkdir()
        (folder / name).touch()
    with pytest.raises(OutputError, match="--overwrite"), output_folder(ours):
        pass
    with pytest.raises(OutputError, match="did not write it"), output_folder(other, overwrite=True):
        pass
    with output_folder(ours, overwrite=True) as partial:
        (partial / "new").touch()
    assert names(ours) == ["new"]
    assert names(tmp_path) == ["other", "ours"]


def test_only_a_result_of_ours_is_replaced(tmp_path):
    ours, other = tmp_path / "ours.json", tmp_path / "other.json"
    write_json(ours, {"schema_version": 1})
    other.write_text("{}")
    check_result_file(ours, overwrite=True)
    check_result_file(tmp_path / "new.json")
    check_result_file(None)
    for file, overwrite in ((ours, False), (other, True), (tmp_path, True), (tmp_path / "no" / "a.json", True)):
        with pytest.raises(OutputError):
            check_result_file(file, overwrite=overwrite)
