"""Every error that a user can cause. The message says what is wrong and what was found; `hint` says what to do next."""

import difflib
import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname


class StreamlinerError(Exception):
    """A failure that is explained without a traceback. Ends the command line tool with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.hint}" if self.hint else str(self.args[0])


class UserError(StreamlinerError):
    """The request cannot be carried out as it is (exit status 2)."""

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. `hint` says what is kept and how to continue."""

    exit_code = 130

    def __init__(self, message: str = "Stopped.", hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def interruption(error: BaseException | None) -> Interrupted | None:
    """The Ctrl-C behind an error, as libraries may turn it into one of their own (an import that failed, say)."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


class ModelError(UserError):
    """The model does not exist or cannot be read."""


class UnsupportedModelError(UserError):
    """The model was read, but it cannot be cut correctly; the message gives the reason."""


class TextError(UserError):
    """A text does not exist, is empty, or is too short."""


class RemovalError(UserError):
    """These blocks, or this number of blocks, cannot be removed."""


class MethodError(UserError):
    """There is no such search method, or it has no such setting."""


class PluginError(UserError):
    """A package with a plug-in is broken, or has a name that is taken."""


class PlanError(UserError):
    """The plan cannot be read or is for another model."""


class HealingError(UserError):
    """The cut model cannot be healed with these settings."""


class EvaluationError(UserError):
    """There is no such task, or nothing to evaluate on."""


class OutputError(UserError):
    """The output exists already or cannot be written."""


class MissingExtraError(UserError):
    """An optional library is missing; `extra` is the name of the extra that has it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional library.", f"Install it with: {install_command(extra)}")


class NotEnoughMemoryError(StreamlinerError):
    """There was not enough memory; the message says for what."""


class VerificationError(StreamlinerError):
    """What was written or measured does not match the definition of removal. Nothing was kept."""


def install_command(extra: str) -> str:
    """What installs an extra: from the clone that streamliner was installed from, otherwise from PyPI (PEP 610)."""
    try:
        origin = json.loads(distribution("streamliner").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    if "dir_info" not in origin:
        return f"pip install 'streamliner[{extra}]'"
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    return f"pip install {editable}'{url2pathname(urlsplit(origin['url']).path)}[{extra}]'"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for a name that does not exist: the known one most like it, then `otherwise`."""
    spelled = {each.lower().replace("_", "-"): each for each in known}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), spelled, 1)
    return f"Did you mean {spelled[near[0]]}? {otherwise}".strip() if near else otherwise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch means that there was not enough memory."""
    # On a CPU torch raises a RuntimeError like any other.
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    own = isinstance(error, (RuntimeError, OSError)) and any(each in str(error).lower() for each in words)
    return own or isinstance(error, (MemoryError, NotEnoughMemoryError))


MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What torch and models raise where tensors have shapes that they do not expect."""


def is_of_device(error: BaseException) -> bool:
    """Whether torch says that tensors are on several devices or that one failed: a fault of ours or of the machine."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in (" device", "CUDA", "HIP", "MPS"))


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the name of its type if it has none."""
    return _lines(error)[0][:300]


def last_line(error: BaseException) -> str:
    """The last line, where other libraries say the cause after where it was found."""
    return _lines(error)[-1][:200]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
