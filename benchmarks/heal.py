"""How much each way of healing brings back, at an equal budget of tokens.

    python benchmarks/heal.py MODEL --removed 7,8,9,10 --data TEXT[=WEIGHT]... --evaluation TEXT \\
        --recipes nothing block-mse block-lm swiglu ffn lora --tokens 200000

Each recipe trains on the same windows in the same order, with one learning rate, and is then measured on the same
windows of a held-out text. "Closed" is the share of the gap in loss (log-perplexity) between the cut and the
dense model; the standard errors are over windows, the second of the difference to the dense model on the same windows.
A table to read, then JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from streamliner.heal.accelerator import make_accelerator
from streamliner.heal.graft import make_graft
from streamliner.heal.healing import count_steps
from streamliner.heal.objective import Objective
from streamliner.heal.sampled_softmax import make_sampled_softmax
from streamliner.heal.trainer import Prepared, Trainer
from streamliner.heal_settings import HealSettings
from streamliner.measure.loss import Loss, next_token_losses
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model, load_tokenizer, silenced_transformers
from streamliner.model.source import locate
from streamliner.runs.folder import environment
from streamliner.runs.reporter import Reporter
from streamliner.text.stream import TrainingText
from streamliner.text.windows import calibration_set, prefix_tokens

RECIPES: dict[str, dict[str, Any]] = {
    "block-mse": {"loss": {"mse": 1.0}},
    "block-normalized": {"loss": {"normalized-mse": 1.0}},
    "block-lm": {"loss": {"lm": 1.0}},
    "block-kd": {"loss": {"kd": 1.0}},
    "swiglu": {"network": "swiglu"},
    "swiglu-plain": {"network": "swiglu", "residual": False},
    "swiglu-lm": {"network": "swiglu", "loss": {"lm": 1.0}},
    "ffn": {"network": "ffn"},
    "ffn-plain": {"network": "ffn", "residual": False},
    "lora": {"network": "none", "lora": 16, "loss": {"lm": 1.0}},
    "block-lora": {"lora": 16, "loss": {"lm": 1.0}},
    "all": {"network": "none", "train_blocks": "all", "loss": {"kd": 1.0, "lm": 1.0}},
    "all-sampled": {"network": "none", "train_blocks": "all", "loss": {"kd": 1.0, "lm": 1.0}, "sampled_softmax": 8192},
}
"""What differs from the defaults: a block that starts as the gap's first, trained with `mse`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--removed", required=True)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--evaluation", default="python-docs:test")
    parser.add_argument("--evaluation-windows", type=int, nargs=2, default=(48, 512), metavar=("COUNT", "TOKENS"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=["nothing", *RECIPES])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    reporter = Reporter(quiet=False)
    removed = tuple(int(part) for part in arguments.removed.split(","))
    source = locate(arguments.model)
    with silenced_transformers():
        tokenizer = load_tokenizer(source)
        blocks = Blocks(load_model(source, dtype=arguments.dtype))
    count, length = arguments.evaluation_windows
    held_out = calibration_set(arguments.evaluation, tokenizer, num_samples=count, sequence_length=length)
    print(f"evaluation: {held_out}")
    dense = measure(blocks, held_out.windows)
    with blocks.bypass(removed):
        cut = measure(blocks, held_out.windows)
    rows = [describe("dense", dense, dense, cut, 0, 0.0)]
    for name in arguments.recipes:
        if name == "nothing":
            rows.append(describe(name, cut, dense, cut, 0, 0.0))
            continue
        settings = HealSettings(
            **RECIPES[name],
            data=arguments.data,
            sequence_length=arguments.sequence_length,
            tokens=arguments.tokens,
            global_batch_size=arguments.batch_size,
            micro_batch=arguments.micro_batch,
            learning_rate=arguments.lr,
            min_learning_rate=arguments.lr / 40,
            validations=5,
            validation_windows=16,
        )
        with silenced_transformers():
            blocks = Blocks(load_model(source, dtype=arguments.dtype))
        graft = make_graft(blocks, removed, settings)
        text = TrainingText(
            settings.texts, tokenizer, sequence_length=arguments.sequence_length, validation_windows=16, seed=0
        )
        steps = count_steps(settings, text)
        sampled = make_sampled_softmax(blocks, settings, text, steps, reporter.say)
        objective = Objective(graft, settings, first=len(prefix_tokens(tokenizer)), sampled=sampled)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, reporter.progress(name) as progress:
            accelerator = make_accelerator(settings, blocks.dtype, blocks.device, Path(folder))
            trainer = Trainer(objective, Prepared(settings, text, steps), accelerator, Path(folder))
            trained = trainer.run(lambda row, progress=progress: progress(row["step"], row["steps"]))
        seconds = time.perf_counter() - start
        with graft.in_place(), torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            healed = measure(blocks, held_out.windows)
        rows.append(describe(name, healed, dense, cut, trained.tokens, seconds) | {"training": vars(trained)})
    print(json.dumps({"arguments": vars(arguments), "rows": rows, "evaluation": held_out.provenance} | environment()))


@torch.no_grad()
def measure(blocks: Blocks, windows: torch.Tensor) -> Loss:
    return Loss(tuple(next_token_losses(blocks.forward(w[None]).logits, w[None]).item() for w in windows))


def describe(name: str, loss: Loss, dense: Loss, cut: Loss, tokens: int, seconds: float) -> dict[str, Any]:
    closed = (cut.mean - loss.mean) / (cut.mean - dense.mean)
    behind = Loss(tuple(a - b for a, b in zip(loss.per_window, dense.per_window, strict=True)))
    print(
        f"{name:17} perplexity {loss.perplexity:8.2f}  loss {loss.mean:.4f} ± {loss.standard_error:.4f}  "
        f"behind dense {behind.mean:.4f} ± {behind.standard_error:.4f}  closed {closed:6.1%}  "
        f"{tokens:,} tokens in {seconds:.0f} s",
        flush=True,
    )
    return {
        "recipe": name,
        "loss": loss.mean,
        "standard_error": loss.standard_error,
        "behind_dense": behind.mean,
        "behind_standard_error": behind.standard_error,
        "closed": closed,
        "tokens": tokens,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
