"""What the whole tool does on a GPU: search, cut, heal and benchmark one model, with checks, in about ten minutes.

    python benchmarks/gpu.py MODEL -o gpu.json              the largest model that the GPU holds in bfloat16
    python benchmarks/gpu.py MODEL --device cpu --windows 2 --tokens 64 --steps 2      does the script work?

Each stage prints its seconds, its peak of device memory and what it checked; a stage that fails says why, and the next
one runs. Please send the JSON file back (an issue is the place): it names the GPU and the versions, and nothing else of
your machine. Checked are: losses of the forked path against plain forwards of the whole model, and what both take; the
cut model's logits and cached generation against bypass; that healing lowers the loss. Text is that of Python's own
documentation, so no network is needed for it.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import streamliner as sl
from streamliner.cut.memory import cut_model
from streamliner.heal.state import RESULT
from streamliner.heal_settings import HealSettings
from streamliner.measure.loss import next_token_losses
from streamliner.model.devices import best_device, wait_for
from streamliner.model.session import Session, open_model
from streamliner.runs.folder import environment
from streamliner.runs.reporter import Reporter
from streamliner.settings import BenchmarkSettings, ModelSettings
from streamliner.verbs.benchmark import benchmark_models
from streamliner.verbs.heal import heal

Stage = Callable[[], dict[str, Any]]


class Run:
    """The stages on one model, and what they found."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.device = torch.device(asked.device) if asked.device else best_device()
        self.stages: dict[str, dict[str, Any]] = {}

    def stage(self, name: str, work: Stage) -> None:
        """Run one stage and note its result, seconds and peak, or why it failed."""
        module = None if self.device.type == "cpu" else torch.get_device_module(self.device)
        peak = getattr(module, "max_memory_allocated", None)
        if peak:
            module.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            found = work()
            wait_for(self.device)
        except Exception as error:  # the figures of the other stages are of use without it
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        found |= {"seconds": time.perf_counter() - start, "peak_bytes": peak() if peak else None}
        self.stages[name] = found
        print(f"{name}: {json.dumps(found)}", flush=True)

    def load(self) -> dict[str, Any]:
        """The model, its text and its blocks."""
        self.session = open_model(self.asked.model, ModelSettings(device=str(self.device)))
        self.blocks = self.session.load()
        self.text = sl.calibration_set(
            "python-docs", self.session.tokenizer(), num_samples=self.asked.windows, sequence_length=self.asked.tokens
        )
        return {"blocks": len(self.blocks), "parameters": self.session.parameters, "dtype": str(self.blocks.dtype)}

    def check(self) -> dict[str, Any]:
        """Losses without each of some blocks on two windows: plain forwards, and a `Probe` with its own check."""
        windows, step = self.text.windows[:2], max(1, len(self.blocks) // 8)
        candidates = list(range(1, len(self.blocks) - 1, step))
        seconds, found, forwards = {}, {}, {}
        ways = {"plain": self._plain, "forked": self._forked}
        for name, way in ways.items():
            way(windows, candidates)  # warms up
            start = time.perf_counter()
            found[name], forwards[name] = way(windows, candidates)
            wait_for(self.device)
            seconds[name] = time.perf_counter() - start
        worst = max(abs(a - b) for a, b in zip(found["plain"], found["forked"], strict=True))
        return {"losses": len(candidates), "worst_difference": worst, "of_each_way": seconds, "forwards": forwards}

    def _plain(self, windows: torch.Tensor, candidates: list[int]) -> tuple[list[float], int]:
        losses = []
        with torch.inference_mode():
            for candidate in candidates:
                with self.blocks.bypass([candidate]):
                    each = [next_token_losses(self.blocks.forward(w[None]).logits, w[None]) for w in windows]
                losses.append(sum(loss.mean().item() for loss in each) / len(each))
        return losses, len(candidates) * len(windows)

    def _forked(self, windows: torch.Tensor, candidates: list[int]) -> tuple[list[float], int]:
        probe = sl.Probe(self.blocks, sl.CalibrationSet(windows, {}))
        losses = [loss.mean for loss in probe.losses_without_each((), candidates).values()]
        return losses, probe.counters.forwards

    def search(self, method: str, **settings: Any) -> dict[str, Any]:
        """A search; its blocks are what the next stages remove."""
        found = sl.search(self.session, self.text, method=method, remove=self.asked.remove, **settings)
        self.removed = found.plan().removed
        return {"removed": list(self.removed), "cost": found.to_json()["cost"], "loss": found.frontier.points[-1].loss}

    def cut(self) -> dict[str, Any]:
        """A cut in memory, compared with bypass."""
        self.small = sl.cut(self.blocks.model, self.removed)
        return {"verification": sl.verify(self.small, dense=self.blocks.model).to_json()}

    def heal(self, loss: str) -> dict[str, Any]:
        """A few steps of a block in place of each gap."""
        asked = self.asked
        settings = HealSettings(
            dense=self.blocks.model,
            tokenizer=self.session.tokenizer(),
            data="python-docs",
            loss=loss,
            steps=asked.steps,
            global_batch_size=asked.batch,
            micro_batch=max(1, asked.batch // 4),
            sequence_length=asked.tokens,
            validation_windows=4,
            validations=1,
            run=asked.scratch / loss,
            overwrite=True,
            quiet=True,
        )
        start = time.perf_counter()
        heal(self.small, settings)
        result = json.loads((asked.scratch / loss / RESULT).read_text())
        tokens = asked.steps * asked.batch * asked.tokens
        training = result["training"]
        return {
            "tokens_per_second_with_checks": tokens / (time.perf_counter() - start),
            "first_loss": training["first_loss"],
            "best_loss": training["best_loss"],
            "lowered": training["best_loss"] < training["first_loss"],
        }

    def benchmark(self) -> dict[str, Any]:
        """The dense model beside the cut one, with SLEB's sizes on a GPU."""
        sessions = [Session.of(self.blocks.model, name="dense"), Session.of(cut_model(self.blocks.model, self.removed))]
        small = {} if self.device.type != "cpu" else {"prompt_tokens": 64, "context_tokens": 16, "new_tokens": 4}
        settings = BenchmarkSettings(dense=self.asked.model, repeats=3, quiet=True, **small)
        return benchmark_models(sessions, settings, Reporter(quiet=True)).to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", help="default: the best that torch finds")
    parser.add_argument("--remove", default="20%")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--time-limit", default="2m", help="of each search by SLEB")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--scratch", type=Path, default=Path("gpu-runs"), help="folder for the runs of healing")
    asked = parser.parse_args()
    run = Run(asked)
    run.stage("load", run.load)
    run.stage("forked path", run.check)
    run.stage("search, streamline", partial(run.search, "streamline"))
    for effort in ("exact", "adaptive"):
        sleb = partial(run.search, "sleb", search_effort=effort, time_limit=asked.time_limit)
        run.stage(f"search, sleb {effort}", sleb)
    run.stage("cut", run.cut)
    for loss in ("mse", "lm"):
        run.stage(f"heal, {loss}", partial(run.heal, loss))
    run.stage("benchmark", run.benchmark)
    asked_for = {key: str(value) for key, value in vars(asked).items() if key not in ("output", "scratch", "model")}
    result = {"model": Path(asked.model).name, "asked": asked_for, "stages": run.stages} | environment()
    asked.output.write_text(json.dumps(result, indent=2))
    failed = [name for name, found in run.stages.items() if "error" in found]
    print(f"Written to {asked.output}." + (f" Failed: {', '.join(failed)}." if failed else ""))


if __name__ == "__main__":
    main()
