"""Try out, before hours of training, that networks without attention can be saved, reloaded and generate."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from streamliner.cut.verification import verify_checkpoint
from streamliner.errors import HealingError, first_line
from streamliner.heal.graft import Graft
from streamliner.heal.merge import stock_blocks
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.save import healed_reference, usual_precision, write_healed
from streamliner.runs.reporter import Reporter


def try_out(graft: Graft, cut_folder: Path, folder: Path, sample: Tensor, reporter: Reporter) -> None:
    """Write a checkpoint with random networks, if it needs custom code; reload and compare it, as at the end.

    The graft, before training, does not change; the trial is written into `folder` and removed.

    Raises:
        HealingError: the architecture does not work with such networks.
    """
    if not any(isinstance(network, FeedForward) for network in graft.networks.values()):
        return
    trial = replace(graft, networks=copy.deepcopy(graft.networks))
    _randomise(trial.networks.values(), usual_precision(cut_folder))
    if stock_blocks(trial, sample) is not None:
        return
    for stale in folder.glob(".trial-*"):  # of a process that was killed here
        shutil.rmtree(stale, ignore_errors=True)
    reporter.say("Trying out that such a network can be saved, reloaded and generates ...")
    for network in trial.networks.values():
        network.to(graft.blocks.dtype).requires_grad_(False)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".trial-") as name:
            reference = healed_reference(trial, sample)
            write_healed(trial, cut_folder, Path(name))
            verify_checkpoint(Path(name), reference, trust_remote_code=True)
    except (HealingError, OSError, MemoryError, torch.OutOfMemoryError):
        raise  # these do not depend on the architecture
    except Exception as error:  # an architecture may fail with such a network in ways of its own
        raise HealingError(
            f"{type(graft.blocks.model).__name__} does not work with such a network: "
            f"{type(error).__name__}: {first_line(error)}",
            "Choose --network block.",
        ) from error


def _randomise(networks: Iterable[nn.Module], precision: torch.dtype) -> None:
    """Add noise, rounded to `precision`: as they start, networks may compute nothing."""
    generator = torch.Generator().manual_seed(0)
    for network in networks:
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data = (parameter.data + noise.to(parameter)).to(precision).float()
