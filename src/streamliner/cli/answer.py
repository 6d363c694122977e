"""`streamliner answer`."""

import dataclasses

from streamliner.cli.command import MODEL, Argument, Given, command
from streamliner.cli.console import print_line
from streamliner.heal_settings import AnswerSettings
from streamliner.settings import ModelSettings

SOURCE = Argument("source", "Text with questions: conversations, or plain texts to continue", "SOURCE")
FILE = Argument("output", "File of JSON lines to write", "FILE", flags=("--output", "-o"))


@command(
    MODEL,
    SOURCE,
    FILE,
    examples=("answer Qwen/Qwen3-0.6B questions.jsonl -o answers.jsonl",),
    without=("offload",),
    Answer=AnswerSettings,
    Model=ModelSettings,
)
def answer(given: Given) -> None:
    """Let MODEL write training text for heal --answers-only: it answers the conversations in SOURCE.

    A killed run continues with the same command.
    """
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.answer import answer as run_answer

    check_alone("answer")
    settings = given.settings(AnswerSettings)
    out = given.argument(FILE)
    found = run_answer(given.argument(MODEL), given.argument(SOURCE), out, settings, given.settings(ModelSettings))

    def table() -> None:
        left = f"; {found.left_out} left out because they did not end" if found.left_out else ""
        print_line(f"{found.rows} rows, {found.tokens:,} tokens of answers{left}. Written to {out}")
        print_line(f"Train on it: streamliner heal CUT --data {out} --answers-only --loss kd")

    given.show(dataclasses.asdict(found), out, table)
