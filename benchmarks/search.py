"""SLEB's search: the naive loop beside ours, on the same model and windows, in one process, taking turns.

    python benchmarks/search.py                              a Llama-shaped random model of 32 blocks, 7 removed
    python benchmarks/search.py MODEL --remove 4 --source python-docs

*Naive* is what the paper's code does: for every candidate of every round a forward of the whole model, batch 1. *Ours*
is `Probe.losses_without_each`, which measures all candidates of a round in one forward a window, the check against
plain forwards included. A search is bound by blocks where the head is small (the random model), and by the head where
the vocabulary is large: the ratio of times then falls behind that of block forwards. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streamliner import Blocks, Probe, load_model, load_tokenizer, locate, make_calibration_set
from streamliner.calibration import CalibrationSet
from streamliner.measure.loss import next_token_losses
from streamliner.search import make_method, search


def naive(blocks: Blocks, windows: torch.Tensor, count: int) -> tuple[list[int], int]:
    """The removed blocks in order, and how many block forwards a window it took."""
    removed: list[int] = []
    forwards = 0
    with torch.inference_mode():
        for _ in range(count):
            losses = {}
            for candidate in (block for block in range(1, len(blocks) - 1) if block not in removed):
                with blocks.bypass([*removed, candidate]):
                    each = [next_token_losses(blocks.forward(w[None]).logits, w[None]).item() for w in windows]
                losses[candidate] = sum(each) / len(each)
                forwards += len(blocks) - len(removed) - 1
            removed.append(min(losses, key=lambda block: (losses[block], block)))
    return removed, forwards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--remove", type=int, default=7)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--source", default="python-docs")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.model:
        source = locate(asked.model)
        model = load_model(source)
        text = make_calibration_set(
            asked.source, load_tokenizer(source), num_samples=asked.windows, sequence_length=asked.tokens
        )
    else:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=1024,
            hidden_size=asked.hidden,
            intermediate_size=asked.hidden * 11 // 4,
            num_hidden_layers=asked.blocks,
            num_attention_heads=asked.hidden // 32,
            num_key_value_heads=asked.hidden // 32,
        )
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        text = CalibrationSet(torch.randint(0, 1024, (asked.windows, asked.tokens)), {})
    blocks = Blocks(model)
    times: dict[str, list[float]] = {"naive": [], "exact": [], "adaptive": []}
    ratios: dict[str, list[float]] = {"exact": [], "adaptive": []}
    passes, evaluations, same = {}, {}, {"exact": True, "adaptive": True}
    for _ in range(asked.repeats):
        start = time.perf_counter()
        plain, passes["naive"] = naive(blocks, text.windows, asked.remove)
        times["naive"].append(time.perf_counter() - start)
        for effort in ratios:
            start = time.perf_counter()
            probe = Probe(blocks, text)
            frontier = search(probe, make_method("sleb", {"effort": effort}), "sleb", asked.remove)
            times[effort].append(time.perf_counter() - start)
            ratios[effort].append(times["naive"][-1] / times[effort][-1])
            same[effort] &= plain == list(frontier.points[-1].removed)
            # Without the dense loss, which the naive loop does not measure.
            passes[effort] = probe.counters.block_forwards / len(text.windows) - len(blocks)
            evaluations[effort] = sum(len(point.candidates or ()) for point in frontier.points)
        seconds = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in times.items())
        print(f"{seconds}; {', '.join(f'{name} {values[-1]:.2f}x' for name, values in ratios.items())}", flush=True)
    result = {
        "model": asked.model or f"Llama-shaped, {asked.blocks} blocks of {asked.hidden}",
        "removed": plain,
        "same_list": same,
        "windows": len(text.windows),
        "tokens": asked.tokens,
        "threads": asked.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "evaluations": evaluations,
        "block_forwards_per_window": passes,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
