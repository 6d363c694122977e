"""Put a result on the Hugging Face hub: checked before the work, uploaded after it. Nothing else here uses a network
that the user did not name."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamliner.cut.card import card_for_hub, licence_of
from streamliner.errors import OutputError, StreamlinerError, first_line
from streamliner.model.mark import is_gguf, read_mark
from streamliner.model.source import HUB_ID
from streamliner.runs.outputs import MARK
from streamliner.settings import HubSettings

PREFIX = "hub:"
NO_FILES = (".gitattributes",)
"""What the hub puts into a new repository."""


@dataclass(frozen=True)
class Destination:
    """Where a result goes: `out` here, and `repository` on the hub; "" where it stays here."""

    out: str
    repository: str = ""
    private: bool = False
    overwrite: bool = False


def find_destination(out: str, settings: HubSettings, *, overwrite: bool) -> Destination:
    """Where a result goes, checked before any work. `-o hub:user/name` is `-o name --push-to-hub user/name`.

    Raises:
        OutputError: the hub cannot be used, the user is not logged in or may not write there, or the repository has
            files that may not be replaced.
    """
    repository, local = settings.push_to_hub or "", str(out)
    if local.startswith(PREFIX):
        if repository:
            raise OutputError(f"-o {local} and --push-to-hub {repository} both name a repository.", "Give one of them.")
        repository = local.removeprefix(PREFIX)
        local = repository.rpartition("/")[2]
    if not repository:
        if settings.private:
            raise OutputError("--private has no effect without --push-to-hub.", "Add it, or leave --private out.")
        return Destination(local)
    _check_repository(repository, overwrite=overwrite)
    return Destination(local, repository, settings.private, overwrite)


def publish(destination: Destination, result: dict[str, Any]) -> dict[str, Any]:
    """Upload the result at `destination.out`, a folder or a GGUF file, with a card that says how to load it.

    Returns what is said of it, a JSON value under "hub"; {} if it stays here.

    Raises:
        StreamlinerError: the upload failed; the result stays where it is.
    """
    if not destination.repository:
        return {}
    from huggingface_hub import HfApi

    repository, out = destination.repository, Path(destination.out).expanduser()
    try:
        with _prepared(out, repository, result) as (folder, licence):
            api = HfApi()
            api.create_repo(repository, private=destination.private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Made with streamliner",
                delete_patterns="*" if destination.overwrite else None,  # of the result that is replaced
            )
    except Exception as error:  # the hub's and the network's errors are of many types
        command = f"hf upload {repository} {destination.out}"
        kept = f"The upload to {repository} failed: {first_line(error)} The result is whole, in {destination.out}."
        raise StreamlinerError(kept, f"Upload it again: {command}") from error
    commit = str(getattr(done, "oid", ""))
    url = f"{api.endpoint}/{repository}"
    return {"hub": {"repository": repository, "url": url, "commit": commit, "licence": licence}}


def _check_repository(repository: str, *, overwrite: bool) -> None:
    """Raise OutputError unless the user can write a result to the repository."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    name, _, rest = repository.partition("/")
    if not (rest and HUB_ID.fullmatch(repository)):
        raise OutputError(
            f"{repository!r} is not the name of a repository on the hub.", "Write USER/NAME, such as me/small."
        )
    if constants.HF_HUB_OFFLINE:
        raise OutputError(
            f"Nothing can be uploaded to {repository}: HF_HUB_OFFLINE is set.",
            "Unset it, or leave out hub: and --push-to-hub.",
        )
    api = HfApi()
    try:
        who = api.whoami()
        there = api.list_repo_files(repository) if api.repo_exists(repository) else []
    except LocalTokenNotFoundError as error:
        raise OutputError(f"You are not logged in to write to {repository}.", "Run: hf auth login") from error
    except HFValidationError as error:
        raise OutputError(f"{repository} is not the name of a repository: {first_line(error)}") from error
    except Exception as error:  # those of the network are of the HTTP library, which changes with releases
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise OutputError(
                f"The hub does not accept your login: {first_line(error)}", "Run: hf auth login"
            ) from error
        raise OutputError(f"The hub gave no answer about {repository}: {first_line(error)}", "Try later.") from error
    mine = [who["name"], *(each["name"] for each in who.get("orgs") or [])]
    if name not in mine:
        found = f"You are logged in as {who['name']}, who cannot create {repository}."
        raise OutputError(found, f"Use one of these as USER: {', '.join(mine)}. Or: hf auth login")
    files = [file for file in there if file not in NO_FILES]
    if files and MARK not in files:
        raise OutputError(f"{repository} has files, and streamliner did not write them.", "Choose another name.")
    if files and not overwrite:
        found = f"{repository} exists on the hub, with {len(files)} files."
        raise OutputError(found, "Choose another name, or add --overwrite to replace it.")


@contextmanager
def _prepared(out: Path, repository: str, result: dict[str, Any]) -> Iterator[tuple[Path, str | None]]:
    """A folder of links to the files of a result, with the card for the hub; and the licence that it names."""
    with tempfile.TemporaryDirectory(prefix="streamliner-") as name:
        folder, mark = Path(name), read_mark(out) or {}
        for file in [out] if is_gguf(out) else sorted(path for path in out.rglob("*") if path.is_file()):
            link = folder / (out.name if is_gguf(out) else file.relative_to(out))
            link.parent.mkdir(parents=True, exist_ok=True)
            if link != folder / "README.md":
                link.symlink_to(file.resolve())
        if is_gguf(out):
            (folder / MARK).write_text(json.dumps(mark, indent=2), encoding="utf-8")
        card = card_for_hub(out, repository, mark, result)
        card.save(folder / "README.md")
        yield folder, licence_of(card)
