"""`streamliner answer`: training text in the dense model's own words."""

from pathlib import Path

from streamliner.heal.answers import Answered, write_answers
from streamliner.heal_settings import AnswerSettings
from streamliner.model.devices import enough_memory
from streamliner.model.session import open_model
from streamliner.runs.reporter import Reporter
from streamliner.settings import ModelSettings


def answer(
    model: str, source: str, out: str | Path, settings: AnswerSettings, model_settings: ModelSettings | None = None
) -> Answered:
    """Let a model answer the conversations of a text, and continue its plain texts, into a file of JSON lines.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.
    """
    session = open_model(model, model_settings)
    with enough_memory("answering", "--batch-size 1, --max-new-tokens 64 or --dtype bfloat16"):
        return write_answers(session, source, out, settings, Reporter(settings.quiet))
