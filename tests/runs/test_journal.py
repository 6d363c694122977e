"""The journal: whose run it is, and what it remembers. `test_kill_*.py` kill real searches."""

from __future__ import annotations

import pytest

from streamliner.errors import OutputError
from streamliner.runs.journal import Journal

IDENTITY = {"model": {"name": "a/b", "weights": "1f"}, "method": "block-influence", "method_settings": {"z": 3.0}}


def test_what_is_remembered_is_read_back_from_the_files_of_all_processes(tmp_path):
    first, second = (Journal(tmp_path / "run", IDENTITY, rank=rank) for rank in (0, 1))
    first.remember([0, 2], {(): [1.0, 3.0], (4,): [1.5, 3.5]})
    first.remember_fork("why not", 1)
    second.remember([1], {(): [2.0]})
    again = Journal(tmp_path / "run", IDENTITY)
    assert again.losses == {(): {0: 1.0, 1: 2.0, 2: 3.0}, (4,): {0: 1.5, 2: 3.5}}
    assert again.fork == ("why not", 1)
    assert again.measurements == 5


@pytest.mark.parametrize(
    "change",
    [{"model": {"name": "/moved/b", "weights": "1f"}}, {"method": "block_influence"}],
    ids=["another path", "name in an earlier release"],
)
def test_the_same_run(tmp_path, change):
    Journal(tmp_path, IDENTITY).remember([0], {(): [1.0]})
    assert Journal(tmp_path, IDENTITY | change).measurements == 1
    assert Journal(tmp_path, IDENTITY | change, overwrite=True).measurements == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"name": "a/b", "weights": "2e"}}, "model.weights was '1f' there and is '2e' now"),
        ({"method": "sleb"}, "method was 'block-influence'"),
        ({"method_settings": {"z": 2.0}}, "method_settings.z was 3.0"),
        ({"dtype": "float32"}, "dtype was None"),
    ],
)
def test_another_run_is_refused_unless_it_may_be_overwritten(tmp_path, change, said):
    Journal(tmp_path, IDENTITY).remember([0], {(): [1.0]})
    with pytest.raises(OutputError, match=r"of another run: (.|\n)*--overwrite") as caught:
        Journal(tmp_path, IDENTITY | change)
    assert said in str(caught.value)
    assert Journal(tmp_path, IDENTITY).measurements == 1
    assert Journal(tmp_path, IDENTITY | change, overwrite=True).measurements == 0


def test_what_an_exact_search_does_not_use_may_differ(tmp_path):
    def of(effort, z):
        return IDENTITY | {"method_settings": {"effort": effort, "z": z}}

    Journal(tmp_path / "exact", of("exact", 3.0)).remember([0], {(): [1.0]})
    assert Journal(tmp_path / "exact", of("exact", 4.0)).measurements == 1
    Journal(tmp_path / "adaptive", of("adaptive", 3.0)).remember([0], {(): [1.0]})
    with pytest.raises(OutputError, match=r"method_settings\.z was 3\.0"):
        Journal(tmp_path / "adaptive", of("adaptive", 4.0))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(OutputError, match="not a run folder"):
        Journal(tmp_path, IDENTITY, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_results_of_the_run_before_go_with_it(tmp_path):
    """A plan or a time of another run would be taken for one of this."""
    Journal(tmp_path, IDENTITY)
    for name in ("plan.json", "targets.json", "cut.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "7.json").write_text("{}")
    Journal(tmp_path, IDENTITY, overwrite=True)  # the same run: it continues
    assert (tmp_path / "plan.json").exists()
    Journal(tmp_path, IDENTITY | {"seed": 7}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "journal.jsonl"]
