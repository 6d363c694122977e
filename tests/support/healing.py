"""Train a healing of the fixture in memory, with settings that take a second."""

from __future__ import annotations

import json

from streamliner.heal.accelerator import make_accelerator
from streamliner.heal.graft import make_graft
from streamliner.heal.healing import count_steps
from streamliner.heal.objective import Objective
from streamliner.heal.sampled_softmax import make_sampled_softmax
from streamliner.heal.state import HISTORY
from streamliner.heal.trainer import Prepared, Trainer
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.text.stream import TrainingText

REMOVED = (4, 5, 9)
SHORT = {
    "data": "python-docs",
    "sequence_length": 64,
    "global_batch_size": 4,
    "micro_batch": 2,
    "learning_rate": 1e-3,
    "validations": 2,
    "validation_windows": 4,
    "steps": 6,
}


def settings(**changes):
    return HealSettings(**(SHORT | changes))


def training_text(tokenizer, chosen):
    return TrainingText(
        chosen.texts,
        tokenizer,
        sequence_length=chosen.sequence_length,
        validation_windows=chosen.validation_windows,
        seed=chosen.seed,
        answers_only=chosen.answers_only,
    )


def objective_of(model, removed=REMOVED, **changes):
    chosen = settings(**changes)
    return Objective(make_graft(Blocks(model), removed, chosen), chosen, first=0)


def heal(model, tokenizer, folder, removed=REMOVED, **changes):
    """Train; returns the objective, the result of the training, and the rows of its history."""
    folder.mkdir(exist_ok=True)
    chosen = settings(**changes)
    blocks, text = Blocks(model), training_text(tokenizer, chosen)
    prepared = Prepared(chosen, text, count_steps(chosen, text))
    sampled = make_sampled_softmax(blocks, chosen, text, prepared.steps, print)
    objective = Objective(make_graft(blocks, removed, chosen), chosen, first=0, sampled=sampled)
    accelerator = make_accelerator(chosen, blocks.dtype, blocks.device, folder)
    trained = Trainer(objective, prepared, accelerator, folder).run(lambda row: None)
    rows = [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
    return objective, trained, rows


def few_answers(folder):
    """Prompts longer than windows: some windows have no answer, others many tokens of one."""
    rows = [
        {"prompt": "Some words of a question. " * 12, "completion": "A with statement. " * (1 + n % 5)}
        for n in range(99)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")
