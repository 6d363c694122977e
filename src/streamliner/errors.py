"""Every error that a user can cause. An error says what was wrong and what was found; `hint` says what to type next."""

from __future__ import annotations


class StreamlinerError(Exception):
    """A failure that needs no traceback. Ends the command line tool with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.hint}" if self.hint else str(self.args[0])


class UserError(StreamlinerError):
    """The user asked for something that cannot be done as asked (exit status 2)."""

    exit_code = 2


class InterruptedByUser(StreamlinerError):  # noqa: N818
    """Ctrl-C. What was measured is in the journal."""

    exit_code = 130


class ModelError(UserError):
    """The model is not there, or cannot be read."""


class UnsupportedModelError(UserError):
    """The model was read, but cutting it would not be right; the message names the reason."""


class TextError(UserError):
    """The calibration text is not there, empty, or too short."""


class RemovalError(UserError):
    """The blocks or the number of blocks asked for cannot be removed."""


class MethodError(UserError):
    """There is no such search method, or it has no such setting."""


class PlanError(UserError):
    """The plan cannot be read or is not for this model."""


class HealingError(UserError):
    """The cut model cannot be healed as asked for."""


class EvaluationError(UserError):
    """There is no such task, or nothing to evaluate on."""


class OutputError(UserError):
    """The output folder exists, or is not ours to replace."""


class MissingExtraError(UserError):
    """An optional library is needed; `extra` is the one of `pip install 'streamliner[extra]'`."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional library.", f"Install it with: pip install 'streamliner[{extra}]'")


class VerificationError(StreamlinerError):
    """What was written or measured is not what the definition of removal says. Nothing was kept."""


def first_line(error: BaseException) -> str:
    """The first line of what another library raised, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
