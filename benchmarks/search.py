"""SLEB's search: the naive loop beside ours, on the same model and windows, in one process, taking turns.

    python benchmarks/search.py                              a Llama-shaped model of 32 blocks, 7 removed
    python benchmarks/search.py MODEL --remove 4 --source python-docs
    python benchmarks/search.py MODEL --remove 6 --windows 32 --tokens 256 --timed-windows 4

*Naive* is what the paper's code does: for every candidate of every round a forward of the whole model, batch 1, and
the cross-entropy of all its positions at once. *Ours*
measures all candidates of a round in one forward a window, the check against plain forwards included; *adaptive* also
leaves out what can hardly be the least. A search is bound by blocks where the head is small (the Llama-shaped
model), and by the head where
the vocabulary is large: the ratio of times then falls behind that of block forwards. The last line is JSON.

The time of naive and exact grows with the number of windows and with nothing else, but for exact's check at the start.
With --timed-windows they run on so many of them, and all their seconds are multiplied; whether adaptive found exact's
list is then not known (null).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import time

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model, load_tokenizer
from streamliner.model.source import locate
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet
from streamliner.text.windows import calibration_set


def graded_model(
    num_blocks: int, hidden: int, windows: int, tokens: int, seed: int
) -> tuple[LlamaForCausalLM, torch.Tensor]:
    """A Llama-shaped model whose losses mean something without training, and windows of text.

    Its text is sampled from the model itself, so that every removal costs; its blocks write into the stream with gains
    spread over a factor of e^2, so that some cost 0.03 nats and some several.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        initializer_range=0.96 / hidden**0.5,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for layer in model.model.layers:
        gain = math.exp(2 * torch.rand(()).item() - 1.5)
        layer.self_attn.o_proj.weight *= gain
        layer.mlp.down_proj.weight *= gain
    model.lm_head.weight *= 3
    start = torch.zeros(windows, 1, dtype=torch.long)
    sampled = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, min_length=tokens, max_length=tokens
    )
    return model, sampled


def naive(blocks: Blocks, windows: torch.Tensor, count: int) -> tuple[list[int], int]:
    """The removed blocks in order, and how many block forwards a window it took."""
    removed: list[int] = []
    forwards = 0
    with torch.inference_mode():
        for _ in range(count):
            losses = {}
            for candidate in (block for block in range(1, len(blocks) - 1) if block not in removed):
                with blocks.bypass([*removed, candidate]):
                    logits = (blocks.forward(w[None]).logits[0, :-1].float() for w in windows)
                    each = [functional.cross_entropy(z, w[1:]).item() for z, w in zip(logits, windows, strict=True)]
                losses[candidate] = sum(each) / len(each)
                forwards += len(blocks) - len(removed) - 1
            removed.append(min(losses, key=lambda block: (losses[block], block)))
    return removed, forwards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--remove", type=int, default=7)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--source", default="python-docs")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--timed-windows", type=int, help="windows on which naive and exact are timed (default: all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.model:
        source = locate(asked.model)
        model = load_model(source, dtype=asked.dtype)
        text = calibration_set(
            asked.source,
            load_tokenizer(source),
            num_samples=asked.windows,
            sequence_length=asked.tokens,
            seed=asked.seed,
        )
    else:
        model, windows = graded_model(asked.blocks, asked.hidden, asked.windows, asked.tokens, asked.seed)
        text = CalibrationSet(windows, {})
    blocks = Blocks(model)
    few = CalibrationSet(text.windows[: asked.timed_windows], {})
    more = len(text.windows) / len(few.windows)
    times: dict[str, list[float]] = {"naive": [], "exact": [], "adaptive": []}
    ratios: dict[str, list[float]] = {"exact": [], "adaptive": []}
    passes, losses, found, same = {}, {}, {}, {"exact": True, "adaptive": True}
    margins: list[float] = []
    for _ in range(asked.repeats):
        start = time.perf_counter()
        plain, passes["naive"] = naive(blocks, few.windows, asked.remove)
        times["naive"].append((time.perf_counter() - start) * more)
        for effort in ratios:
            on, factor = (few, more) if effort == "exact" else (text, 1.0)
            start = time.perf_counter()
            probe = Probe(blocks, on)
            frontier = run_method(probe, make_method("sleb", {"effort": effort}), "sleb", asked.remove)
            times[effort].append((time.perf_counter() - start) * factor)
            ratios[effort].append(times["naive"][-1] / times[effort][-1])
            same[effort] &= plain == list(frontier.points[-1].removed)
            # Without the dense loss, which the naive loop does not measure.
            passes[effort] = probe.counters.block_forwards / len(on.windows) - len(blocks)
            losses[effort] = (probe.counters.window_losses - len(on.windows)) * factor
            margins = [point.margin for point in frontier.points if point.margin is not None]
            found[effort] = list(frontier.points[-1].removed)
        seconds = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in times.items())
        print(f"{seconds}; {', '.join(f'{name} {values[-1]:.2f}x' for name, values in ratios.items())}", flush=True)
    result = {
        "model": asked.model or f"Llama-shaped, {asked.blocks} blocks of {asked.hidden}",
        "source": asked.source if asked.model else "sampled from the model",
        "removed": plain,
        "same_list": same | ({} if more == 1 else {"adaptive": None}),
        "windows": len(text.windows),
        "timed_windows": len(few.windows),
        "dtype": asked.dtype,
        "tokens": asked.tokens,
        "threads": asked.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "window_losses": losses,
        "found": found,
        "smallest_margin": min(margins, default=None),
        "seed": asked.seed,
        "block_forwards_per_window": passes,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
