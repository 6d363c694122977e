"""`-o hub:USER/NAME` and `--push-to-hub`: checked before the work, uploaded after it. The hub is a fake one."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from command import run
from places import TINY

CUT = ("cut", TINY, "--blocks", "3,7", "--no-verify")


class FakeHub:
    """What is on the hub, and what was asked of it."""

    def __init__(self):
        self.repositories, self.calls, self.fails, self.logged_in = {}, [], None, True

    def whoami(self):
        self.calls.append("whoami")
        if not self.logged_in:
            raise LocalTokenNotFoundError("Token is required")
        return {"name": "me", "orgs": [{"name": "club"}]}

    def repo_exists(self, name):
        return name in self.repositories

    def list_repo_files(self, name):
        return list(self.repositories[name])

    def create_repo(self, name, *, private, exist_ok):
        self.calls.append(("create", name, private))
        assert exist_ok
        self.repositories.setdefault(name, {".gitattributes": b""})

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        if self.fails:
            raise self.fails
        kept = {} if delete_patterns == "*" else self.repositories[repo_id]
        files = {str(path.relative_to(folder_path)): path.read_bytes() for path in folder_path.rglob("*")}
        self.repositories[repo_id] = kept | files
        return SimpleNamespace(oid="abc123")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = FakeHub()
    for name in ("whoami", "repo_exists", "list_repo_files", "create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, *args, _name=name, **named: getattr(fake, _name)(*args, **named))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return fake


def card_of(files):
    return huggingface_hub.ModelCard(files["README.md"].decode())


def test_a_folder_is_uploaded_whole_with_a_card_that_says_how_to_load_it(capsys, hub, tmp_path):
    dense = tmp_path / "dense"
    shutil.copytree(TINY, dense)
    (dense / "README.md").write_text("---\nlicense: mit\ntags: tiny\nbase_model: them/large\n---\n# Dense\n")
    out, _ = run(capsys, "cut", dense, *CUT[2:], "-o", "hub:me/small")
    assert "Uploaded to https://huggingface.co/me/small" in out
    assert "no licence" not in out
    files = hub.repositories["me/small"]
    local = {str(path.relative_to(tmp_path / "small")) for path in (tmp_path / "small").rglob("*") if path.is_file()}
    assert files.keys() == local | {".gitattributes"}
    assert files["model.safetensors"] == (tmp_path / "small" / "model.safetensors").read_bytes()
    card = card_of(files)
    assert (card.data.license, card.data.tags, card.data.base_model) == ("mit", ["tiny"], "them/large")
    for words in (
        "without 2 of 12 blocks",
        'from_pretrained("me/small")',
        "vllm serve me/small",
        "llama.cpp",
        "before",
    ):
        assert words in card.content
    assert "## Load" not in (tmp_path / "small" / "README.md").read_text()
    assert ("create", "me/small", False) in hub.calls


def test_a_file_is_uploaded_with_its_plan_and_a_card(capsys, hub, tmp_path):
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    dense = write_gguf(TINY, tmp_path / "dense.gguf", lambda w: w.add_string("general.license", "apache-2.0"))
    arguments = ("-o", "small.gguf", "--push-to-hub", "club/small", "--private", "--json")
    result = json.loads(run(capsys, "cut", dense, *CUT[2:], *arguments)[0])
    assert result["hub"]["repository"] == "club/small"
    assert result["hub"]["commit"] == "abc123"
    assert ("create", "club/small", True) in hub.calls
    files = hub.repositories["club/small"]
    assert files.keys() == {".gitattributes", "README.md", "small.gguf", "streamliner.json"}
    assert files["small.gguf"] == (tmp_path / "small.gguf").read_bytes()
    assert json.loads(files["streamliner.json"])["removed"] == [3, 7]
    card = card_of(files)
    fields = card.data.to_dict()
    assert (fields["license"], fields["library_name"]) == ("apache-2.0", "gguf")
    assert "llama-cli -hf club/small" in card.content
    assert 'gguf_file="small.gguf"' in card.content


def test_what_was_healed_is_uploaded(capsys, hub, tmp_path):
    """By `prune --heal` and by `heal`, with the figures of the healing in the card."""
    size = ("--sequence-length", "32", "--steps", "1", "--global-batch-size", "2", "--validation-windows", "2")
    search = ("--method", "streamline", "--remove", "2", "--num-samples", "2", "--heal")
    out, _ = run(capsys, "prune", TINY, *search, *size, "-o", "hub:me/pruned")
    assert "Uploaded to https://huggingface.co/me/pruned" in out
    run(capsys, *CUT, "-o", "cut")
    run(capsys, "heal", "cut", "--dense", TINY, *size, "-o", "healed", "--push-to-hub", "me/healed", "--no-verify")
    for name, folder in (("me/pruned", "pruned"), ("me/healed", "healed")):
        files = hub.repositories[name]
        assert files["model.safetensors"] == (tmp_path / folder / "model.safetensors").read_bytes()
        assert json.loads(files["streamliner.json"])["healing"]["training"]["steps"] == 1
        assert "## Healing" in card_of(files).content
        assert f'from_pretrained("{name}")' in card_of(files).content
        assert not any("history" in file or ".run" in file for file in files)


def test_a_card_without_a_licence_is_said(capsys, hub):
    assert "names no licence" in run(capsys, *CUT, "-o", "small", "--push-to-hub", "me/small")[0]
    assert card_of(hub.repositories["me/small"]).data.license is None


def test_only_files_of_ours_are_replaced_and_only_when_asked(capsys, hub):
    hub.repositories["me/theirs"] = {"model.safetensors": b"", ".gitattributes": b""}
    hub.repositories["me/ours"] = {"streamliner.json": b"", "old.safetensors": b"", ".gitattributes": b""}
    hub.repositories["me/empty"] = {".gitattributes": b""}
    for name, message, flags in (
        ("me/theirs", "streamliner did not write them", ()),
        ("me/theirs", "streamliner did not write them", ("--overwrite",)),
        ("me/ours", "exists on the hub, with 2 files", ()),
    ):
        before = dict(hub.repositories[name])
        assert message in run(capsys, *CUT, "-o", "small", "--push-to-hub", name, *flags, status=2)[1]
        assert hub.repositories[name] == before
    run(capsys, *CUT, "-o", "small", "--push-to-hub", "me/ours", "--overwrite")
    assert "old.safetensors" not in hub.repositories["me/ours"]
    run(capsys, *CUT, "-o", "small", "--push-to-hub", "me/empty", "--overwrite")
    assert "config.json" in hub.repositories["me/empty"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "hub:small"], "is not the name of a repository on the hub"),
        (["-o", "hub:me/sm all"], "is not the name of a repository on the hub"),
        (["-o", "hub:me/a--b"], "is not the name of a repository"),
        (["-o", "hub:you/small"], "Use one of these as USER: me, club"),
        (["-o", "hub:me/a", "--push-to-hub", "me/b"], "both name a repository"),
        (["-o", "small", "--private"], "--private has no effect"),
    ],
)
def test_mistakes_are_said_before_any_work(capsys, hub, tmp_path, arguments, message):
    hub.repositories["me/a--b"] = {}
    if "a--b" in arguments[1]:
        hub.repo_exists = lambda name: huggingface_hub.utils.validate_repo_id(name)
    for verb in (["cut", "--blocks", "3"], ["prune", "--remove", "1"], ["heal"]):
        _, err = run(capsys, verb[0], "nowhere/at/all", *verb[1:], *arguments, status=2)
        assert message in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_who_is_not_logged_in_is_told_how(capsys, hub, tmp_path):
    hub.logged_in = False
    assert "hf auth login" in run(capsys, *CUT, "-o", "hub:me/small", status=2)[1]
    hub.whoami = lambda: (_ for _ in ()).throw(ConnectionError("no route to host"))
    assert "gave no answer about me/small: no route" in run(capsys, *CUT, "-o", "hub:me/small", status=2)[1]
    assert not list(tmp_path.iterdir())


def test_offline_refuses_at_once(capsys, hub, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in run(capsys, *CUT, "-o", "hub:me/small", status=2)[1]
    assert hub.calls == []
    assert not list(tmp_path.iterdir())


def test_a_failed_upload_keeps_the_result_and_says_how_to_go_on(capsys, hub, tmp_path):
    hub.fails = RuntimeError("the line is dead")
    _, err = run(capsys, *CUT, "-o", "small", "--push-to-hub", "me/small", status=1)
    err = " ".join(err.split())
    assert "The upload to me/small failed: the line is dead" in err
    assert "hf upload me/small small" in err
    assert (tmp_path / "small" / "model.safetensors").is_file()


def test_nothing_is_asked_of_the_hub_unless_it_is_named(capsys, hub):
    run(capsys, *CUT, "-o", "small")
    assert hub.calls == []
