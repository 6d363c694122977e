"""The dense model's own answers to the questions of a text, as training text (self-distillation)."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError, TextError
from streamliner.format import counted
from streamliner.heal_settings import AnswerSettings
from streamliner.model.blocks import Blocks
from streamliner.model.generate import end_tokens, sample
from streamliner.model.session import Session
from streamliner.runs.files import append_json_line, drop_unfinished_line, read_json_lines, write_text
from streamliner.runs.outputs import check_result_file
from streamliner.runs.reporter import Reporter
from streamliner.text.chat import ANSWERS, encode, text_of_conversation
from streamliner.text.formats import Document
from streamliner.text.sources import stream_documents
from streamliner.text.windows import prefix_tokens
from streamliner.types import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answered:
    """What was written: rows, of how many tokens, and how many answers were left out as they did not end."""

    rows: int
    tokens: int
    left_out: int
    output: str


@dataclass(frozen=True)
class _Question:
    """A row without its answer: messages, or the beginning of a text; and the token ids of the prompt."""

    messages: list[dict[str, str]] | None
    ids: list[int]


def write_answers(
    session: Session, source: str, out: str | Path, settings: AnswerSettings, reporter: Reporter
) -> Answered:
    """Let a model answer the conversations of a text, and continue the beginnings of its plain texts.

    The last answer of a conversation is replaced; one that does not end within `max_new_tokens` is left out, as it
    would teach to stop anywhere. `out`, a file of JSON lines, appears at the end; until then rows are in a hidden file
    next to it, from which the same call continues after a kill.

    Raises:
        OutputError: the file exists, or the hidden one is of other settings.
        TextError: the text has nothing to answer.
    """
    check_result_file(out)
    path = Path(out).expanduser().absolute()
    part = path.with_name(f".{path.name}.part")
    tokenizer = session.tokenizer()
    most = session.context - settings.max_new_tokens
    questions = [
        _question(tokenizer, each, settings.prompt_tokens) for each in _documents(source, settings.num_samples)
    ]
    if long := sum(len(each.ids) > most for each in questions):
        reporter.say(f"Left out: {counted(long, 'question')} too long for the model's context with an answer.")
        questions = [each for each in questions if len(each.ids) <= most]
    if not questions:
        raise TextError(f"The text {source} has nothing to answer.")
    blocks = session.load(reporter)
    identity = {"model": session.identity, "source": source, **asdict(settings)}
    identity.pop("quiet")
    start = _continue(part, identity)
    with reporter.progress("Answering") as progress:
        for first in range(start, len(questions), settings.batch_size):
            batch = questions[first : first + settings.batch_size]
            rows = _answers(blocks, tokenizer, batch, settings, settings.seed * 1_000_003 + first)
            append_json_line(part, rows)
            progress(min(first + len(batch), len(questions)), len(questions))
    every = list(itertools.chain.from_iterable(read_json_lines(part)[1:]))
    kept = [each["row"] for each in every if each["row"]]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    part.unlink()
    return Answered(len(kept), sum(each["tokens"] for each in every if each["row"]), len(every) - len(kept), str(out))


def _continue(part: Path, identity: dict[str, Any]) -> int:
    """The number of questions that an earlier run answered; writes the identity of a new run."""
    identity = json.loads(json.dumps(identity))
    if not part.exists():
        append_json_line(part, identity)
        return 0
    drop_unfinished_line(part)
    found, *batches = read_json_lines(part) or [None]
    if found != identity:
        raise OutputError(f"{part} is of a run with other settings.", "Remove it, or choose another file with -o.")
    return sum(map(len, batches))


def _documents(source: str, count: int) -> Iterator[Document]:
    found = (each for each in stream_documents(source) if not isinstance(each, str) or each.strip())
    return itertools.islice(found, count)


def _question(tokenizer: PreTrainedTokenizerBase, document: Document, prompt_tokens: int) -> _Question:
    prefix = prefix_tokens(tokenizer)
    if isinstance(document, str):
        return _Question(None, prefix + encode(tokenizer, document)[:prompt_tokens])
    last = max((place for place, each in enumerate(document) if each["role"] == "user"), default=-1)
    if last < 0:
        raise TextError("A conversation has no message of a user to answer.", "Give rows with messages, or plain text.")
    messages = document[: last + 1]
    return _Question(messages, encode(tokenizer, text_of_conversation(tokenizer, messages, for_answer=True)))


def _answers(
    blocks: Blocks, tokenizer: PreTrainedTokenizerBase, batch: list[_Question], settings: AnswerSettings, seed: int
) -> list[dict[str, Any]]:
    """A row for each question, None in place of one that did not end, and the number of tokens of the answer."""
    prompts, ends = [each.ids for each in batch], end_tokens(blocks.model)
    answers = sample(blocks, prompts, settings.max_new_tokens, ends, temperature=settings.temperature, seed=seed)
    return [_row(tokenizer, each, new, ends) for each, new in zip(batch, answers, strict=True)]


def _row(tokenizer: PreTrainedTokenizerBase, question: _Question, tokens: list[int], ends: list[int]) -> dict[str, Any]:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    kept = tokens[:end]
    row: dict[str, Any] | None
    if question.messages is None:
        row = {"text": tokenizer.decode(question.ids + kept, skip_special_tokens=True)}
    elif end is None:
        row = None
    else:
        answer = str(tokenizer.decode(kept, skip_special_tokens=True))
        row = {"messages": [*question.messages, {"role": ANSWERS, "content": answer}]}
    return {"row": row, "tokens": len(kept)}
