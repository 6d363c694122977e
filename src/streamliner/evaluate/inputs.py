"""Read everything that models are evaluated on, and refuse what is not possible, before any weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from streamliner.errors import EvaluationError
from streamliner.evaluate.samples import PROMPT_TOKENS, spread_prompts
from streamliner.evaluate.tasks import Harness, Task
from streamliner.model.session import Session
from streamliner.model.stack import has_encoder
from streamliner.runs.reporter import Reporter
from streamliner.settings import EvaluateSettings
from streamliner.text.windows import TextWindows, text_windows
from streamliner.types import PreTrainedTokenizerBase

LARGE = ("a large text", "of its beginning")


@dataclass(frozen=True)
class EvaluationInputs:
    """What all models are evaluated on.

    Attributes:
        tokenizer: that of the first model.
        harness: runs the tasks; None if there are none.
        prompt_source: the text that the prompts are from.
        sample_prompts, draft_prompts: token ids, (prompts, tokens).
    """

    settings: EvaluateSettings
    tokenizer: PreTrainedTokenizerBase
    texts: tuple[TextWindows, ...]
    tasks: tuple[Task, ...]
    harness: Harness | None
    prompt_source: str
    sample_prompts: Tensor
    draft_prompts: Tensor

    def tokenizer_of(self, session: Session) -> PreTrainedTokenizerBase:
        """The model's own tokenizer; that of the first model for a model in memory without one."""
        if session.model is not None and session.given_tokenizer is None:
            return self.tokenizer
        return session.tokenizer()


def read_inputs(
    sessions: Sequence[Session], settings: EvaluateSettings, parent: Session | None, reporter: Reporter
) -> EvaluationInputs:
    """Read texts, tasks and prompts; `parent` is the model that the others are measured as drafts for.

    Raises:
        EvaluationError: there is nothing to evaluate on, or a model cannot be evaluated on it.
        TextError: a text is not available or too short, or a window too long for a model.
        MissingExtraError: an optional library is missing.
    """
    reads_text = bool(settings.texts or settings.samples or parent)
    if not (reads_text or settings.task_names):
        raise EvaluationError(
            "There is nothing to evaluate on.", "Add --perplexity wikitext2:test or --tasks arc_easy."
        )
    everyone = [*sessions, *([parent] if parent else [])]
    for session in everyone if reads_text else ():
        if has_encoder(session.shell):  # which would read the text that is to be predicted
            raise EvaluationError(
                f"{session.source.name} has an encoder, so perplexity, samples and drafts are not defined for it.",
                "Evaluate it with --tasks.",
            )
    harness = Harness(settings.tasks_path) if settings.task_names else None
    tasks = harness.find(settings.task_names, settings.limit, settings.num_fewshot) if harness else []
    tokenizer = settings.tokenizer or sessions[0].tokenizer()
    texts = _read_texts(sessions, settings, tokenizer, reporter)
    for session in everyone if parent else ():
        session.window_length(PROMPT_TOKENS + settings.draft_tokens, "--draft-tokens: a text of")
    source = next(iter(settings.texts), "python-docs:test")
    counts = (settings.samples, settings.draft_prompts if parent else 0)
    prompts = (spread_prompts(source, tokenizer, count, reporter) for count in counts)
    inputs = EvaluationInputs(settings, tokenizer, texts, tuple(tasks), harness, source, *prompts)
    for session in everyone[1:] if reads_text else ():
        if inputs.tokenizer_of(session).get_vocab() != tokenizer.get_vocab():  # token ids mean something else to it
            raise EvaluationError(
                f"{session.source.name} has another tokenizer than the first model, so they cannot be compared.",
                "Evaluate it alone.",
            )
    for session in sessions if settings.apply_chat_template else ():
        if getattr(inputs.tokenizer_of(session), "chat_template", None) is None:
            raise EvaluationError(
                f"The tokenizer of {session.source.name} has no chat template.", "Leave out --apply-chat-template."
            )
    return inputs


def _read_texts(
    sessions: Sequence[Session], settings: EvaluateSettings, tokenizer: PreTrainedTokenizerBase, reporter: Reporter
) -> tuple[TextWindows, ...]:
    length = min(session.window_length(settings.sequence_length) for session in sessions)
    texts = tuple(
        text_windows(source, tokenizer, length, settings.stride, settings.num_samples)
        for source in dict.fromkeys(settings.texts)
    )
    for of in (text.provenance for text in texts):
        bos, before = "a BOS and " if of["bos"] else "", len(of.get("prefix", ())) or of["bos"]
        whole = of["left_out"] is not None
        size, rest = (f"{of['text_tokens']:,} tokens", f"{of['left_out']:,} tokens left out") if whole else LARGE
        reporter.say(
            f"{of['source']}: {size}, {of['windows']} windows of {bos}{of['window'] - before} "
            f"tokens, one every {of['stride']}; {of['predictions']:,} predictions, {rest}."
        )
    return texts
