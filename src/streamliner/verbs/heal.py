"""`streamliner heal`."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamliner.cut.card import extend_model_card
from streamliner.cut.verify import Expectation, expect, sample_tokens, verify
from streamliner.errors import (
    HealingError,
    InterruptedByUser,
    OutputError,
)
from streamliner.heal.adapters import check_peft
from streamliner.heal.checks import check_apart, check_same_type, check_same_weights, read_cut
from streamliner.heal.custom_code import FILE
from streamliner.heal.graft import Graft
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.objective import Objective, make_objective
from streamliner.heal.save import settle, usual_precision, write_healed
from streamliner.heal.settings import HealSettings
from streamliner.heal.state import BEST, HISTORY, STATE, load_tensors
from streamliner.heal.stock import as_stock_block
from streamliner.heal.trainer import Trained, check_division, count_steps, find_trackers, make_accelerator, train
from streamliner.measure.loss import Loss, next_token_losses
from streamliner.model.fingerprint import weights_hash
from streamliner.model.load import load_tokenizer
from streamliner.model.session import Session
from streamliner.model.stack import has_encoder
from streamliner.runs.files import MARK, check_output, output_folder, write_json
from streamliner.runs.folder import check_run_folder, check_same_run, environment
from streamliner.runs.reporter import Reporter, Silent
from streamliner.search.plan import Plan, check_plan
from streamliner.text.stream import PRESETS, Mixture
from streamliner.text.windows import window_length

RUN = "healing.json"
"""Settings and provenance of a healing run, in its run folder."""


def heal_checkpoint(
    dense: Session,
    cut_folder: str | Path,
    settings: HealSettings,
    out: str | Path,
    run_folder: str | Path,
    *,
    overwrite: bool = False,
    verified: bool = True,
    sample: Tensor,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train what takes the place of a cut checkpoint's removed blocks, and write the healed one to `out`.

    The run folder keeps the state of the training, the loss of each step, and the settings. The same call goes on with
    a run that was killed.

    Args:
        dense: session of the model that was cut.
        cut_folder: what `cut` or `prune` wrote.
        settings: network, losses, text, budget.
        out: folder for the checkpoint; appears whole or not at all.
        run_folder: of the training.
        overwrite: replace an output of streamliner's, and start anew where the run folder is of another run.
        verified: reload and compare before `out` appears.
        sample: token ids to verify on, (1, tokens).
        reporter: told what goes on.

    Returns:
        JSON value: gaps, losses and perplexities before and after, steps, verification. Empty in other processes than
        the first.

    Raises:
        UserError: what was asked for cannot be done; the message says why.
    """
    ranks = dense.ranks
    reporter = (reporter if ranks.rank == 0 else None) or Silent()
    cut_path, plan = read_cut(cut_folder)
    wanted = f"Give as --dense the model that it was cut from: {plan.model.get('name', '?')}"
    check_plan(plan, dense.identity, dense.num_blocks, wanted)
    for model_folder in (dense.source.path or None, cut_path):
        check_output(out, overwrite=overwrite, model_folder=model_folder)
    folder = check_run_folder(run_folder, RUN)
    check_apart(Path(out), folder, cut_path)
    settings, mixture, steps = prepare_healing(dense, settings, reporter)
    check_same_type(dense, cut_path)
    graft, trained, before = _train(
        dense, cut_path, plan, settings, mixture, steps, folder, overwrite, sample, reporter
    )
    if ranks.rank:
        return {}
    custom, wasted = settle(graft, cut_path, sample)
    result: dict[str, Any] = {
        "gaps": [{"start": gap.start, "stop": gap.stop, "places": list(gap.places)} for gap in graft.gaps],
        "removed": list(plan.removed),
        "blocks_before": dense.num_blocks,
        "blocks_after": dense.num_blocks - len(plan.removed),
        "custom_code": bool(custom),
        "parameters_for_nothing": wasted,
        "settings": dataclasses.asdict(settings),
        "training": dataclasses.asdict(trained),
        "validation_perplexity": before | {"healed": _perplexity(graft, mixture.validation, healed=True)},
        "verification": None,
    }
    expected = _expectation(graft, sample) if verified else None
    with output_folder(out, overwrite=overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        write_healed(graft, custom, cut_path, partial)
        # Make room for the healed model: nothing else holds the dense one.
        del graft
        dense.blocks, trusted = None, bool(custom) or dense.settings.trust_remote_code
        custom = {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if expected is not None:
            reporter.say("Verifying: reload, logits against the healed model, generation with and without cache ...")
            result["verification"] = verify(partial, expected, trust_remote_code=trusted).to_json()
        old = json.loads((cut_path / MARK).read_text(encoding="utf-8"))
        write_json(partial / MARK, old | {"healing": result})
        extend_model_card(partial, plan, result, FILE)
    write_json(folder / "result.json", result)
    return result | {"output": str(out)}


def prepare_healing(dense: Session, settings: HealSettings, reporter: Reporter) -> tuple[HealSettings, Mixture, int]:
    """All that can be told of a healing before there is a plan and before weights are loaded.

    Returns:
        The settings with their text, the text, and optimiser steps.

    Raises:
        UserError: what was asked for cannot be done.
    """
    if dense.settings.device == "auto" or dense.settings.offload:
        flag = "--offload" if dense.settings.offload else "--device auto"
        raise HealingError(f"Healing needs the whole model on one device, so {flag} does not go with it.")
    if has_encoder(dense.shell):
        raise HealingError(f"{dense.source.name} writes behind an encoder, so text alone does not train its blocks.")
    if getattr(dense.config, "quantization_config", None):
        raise HealingError(
            f"The weights of {dense.source.name} are quantised, and trained ones would not be.",
            "Cut and heal the model that it was quantised from, then quantise that.",
        )
    if settings.lora:
        check_peft()
    check_division(settings, dense.ranks.size)
    find_trackers(settings)
    if not settings.data:
        settings = dataclasses.replace(settings, data=_usual_text(dense, reporter))
    mixture = Mixture(
        settings.data,
        load_tokenizer(dense.source),
        sequence_length=window_length(dense, settings.sequence_length),
        validation_windows=settings.validation_windows,
        seed=settings.seed,
    )
    return settings, mixture, count_steps(settings, mixture)


def _train(
    dense: Session,
    cut_path: Path,
    plan: Plan,
    settings: HealSettings,
    mixture: Mixture,
    steps: int,
    folder: Path,
    overwrite: bool,
    sample: Tensor,
    reporter: Reporter,
) -> tuple[Graft, Trained, dict[str, Any]]:
    """The trained graft, what came of it, and perplexities of the dense and the cut model."""
    ranks, blocks = dense.ranks, dense.load(reporter)
    check_same_weights(blocks, plan.removed, cut_path)
    identity = {
        "model": dense.identity | {"weights": weights_hash(blocks.model)},
        "removed": list(plan.removed),
        "dtype": str(blocks.dtype),
        "steps": steps,
        "text": mixture.fingerprint,
        "settings": _that_matter(settings),
    }
    objective = make_objective(blocks, plan.removed, settings, bos=mixture.has_bos)
    graft = objective.graft
    _announce(objective, settings, steps, mixture, reporter)
    accelerator = make_accelerator(settings, blocks.dtype, blocks.device, folder)
    if ranks.rank == 0:
        _enter(folder, identity, settings, overwrite)
    ranks.wait()
    if (folder / STATE).exists():
        done = load_tensors(folder / STATE)[1]["progress"]["step"]
        reporter.say(f"Continuing the run in {folder} after step {done} of {steps}.")
    elif ranks.rank == 0:
        _try_out(graft, cut_path, folder, sample, reporter)
    ranks.wait()
    if settings.track:
        accelerator.init_trackers("streamliner", config=_flat(dataclasses.asdict(settings)))
    before = _perplexities(graft, mixture.validation, reporter) if ranks.rank == 0 else {}
    with reporter.training(steps) as on_row:
        trained = train(objective, mixture, settings, steps, accelerator, folder, on_row)
    if settings.track:
        accelerator.end_training()
    accelerator.free_memory()
    return graft, trained, before


def _try_out(graft: Graft, cut_path: Path, folder: Path, sample: Tensor, reporter: Reporter) -> None:
    """Find before hours of training that a network without attention cannot be saved, or cannot generate.

    A checkpoint with code of its own is written with random networks, reloaded and compared, as at the end.
    """
    trial = {place: copy.deepcopy(network) for place, network in graft.networks.items()}
    custom = {place: network for place, network in trial.items() if isinstance(network, FeedForward)}
    if not custom:
        return
    generator, precision = torch.Generator().manual_seed(0), usual_precision(cut_path)
    for network in custom.values():
        for parameter in network.parameters():  # as they begin they may do nothing
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data = (parameter.data + noise.to(parameter)).to(precision).float()
    if all(as_stock_block(network, graft.blocks, place, sample) is not None for place, network in custom.items()):
        return
    for stale in folder.glob(".trial-*"):  # of a process that was killed here
        shutil.rmtree(stale, ignore_errors=True)
    reporter.say("Trying out that such a network can be saved, reloaded and generates ...")
    for network in custom.values():
        network.to(graft.blocks.dtype).requires_grad_(False)
    whole = Graft(graft.blocks, graft.gaps, trial, graft.removed)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".trial-") as name:
            expected = _expectation(whole, sample)
            write_healed(whole, custom, cut_path, Path(name))
            verify(Path(name), expected, trust_remote_code=True)
    except (HealingError, InterruptedByUser, OSError, MemoryError, torch.OutOfMemoryError):
        raise  # these say nothing of the architecture
    except Exception as error:  # an architecture may fail with such a network in ways of its own
        raise HealingError(
            f"{type(graft.blocks.model).__name__} does not work with such a network: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}",
            "Choose --network block.",
        ) from error


def _expectation(graft: Graft, sample: Tensor) -> Expectation:
    """What the healed model in memory does, to compare the reloaded one with."""
    dense = expect(graft.blocks, (), sample)
    with torch.no_grad(), graft.in_place():
        logits = graft.blocks.forward(sample).logits.cpu()
    return dataclasses.replace(dense, logits=logits, of="the healed model in memory")


def _usual_text(dense: Session, reporter: Reporter) -> tuple[tuple[str, float], ...]:
    if dense.source.kind == "hub":
        return PRESETS["slimpajama"]
    reporter.say("Training on python-docs, which needs no network and is little. Name your own text with --data.")
    return (("python-docs", 1.0),)


def _that_matter(settings: HealSettings) -> dict[str, Any]:
    """Settings that a run cannot change when it goes on."""
    free = ("save_every", "track", "micro_batch", "tokens", "steps", "epochs")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}


def _enter(folder: Path, identity: dict[str, Any], settings: HealSettings, overwrite: bool) -> None:
    """Make the run folder, or see that what is there is this run; with `overwrite` another run gives way."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RUN).exists():
        try:
            check_same_run(folder, json.loads((folder / RUN).read_text(encoding="utf-8"))["identity"], identity)
        except (json.JSONDecodeError, KeyError, OutputError) as error:
            if not overwrite:
                if isinstance(error, OutputError):
                    raise
                raise OutputError(
                    f"{folder / RUN} cannot be read.", "Add --overwrite to start the run anew."
                ) from error
            for name in (RUN, STATE, BEST, HISTORY):
                (folder / name).unlink(missing_ok=True)
    value = {"schema_version": 1, "identity": identity, "settings": dataclasses.asdict(settings)}
    write_json(folder / RUN, value | environment())


def _announce(objective: Objective, settings: HealSettings, steps: int, mixture: Mixture, reporter: Reporter) -> None:
    for gap in objective.graft.gaps:
        reporter.say(f"{gap}.")
    trainable = sum(parameter.numel() for parameter in objective.trainable().values())
    tokens = steps * settings.batch_size * mixture.sequence_length
    losses = " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in settings.loss.items())
    reporter.say(
        f"Training {trainable:,} parameters with loss {losses}: {steps} steps of {settings.batch_size} windows of "
        f"{mixture.sequence_length} tokens, {tokens:,} tokens in all; {len(mixture.validation)} windows held out."
    )


def _perplexities(graft: Graft, validation: Tensor, reporter: Reporter) -> dict[str, Any]:
    if len(validation):
        reporter.say("Measuring the dense and the cut model on the held-out windows ...")
    return {
        "dense": _perplexity(graft, validation, removed=()),
        "cut": _perplexity(graft, validation, removed=graft.removed),
    }


@torch.no_grad()
def _perplexity(
    graft: Graft, validation: Tensor, *, removed: tuple[int, ...] = (), healed: bool = False
) -> float | None:
    """Of the dense model without `removed`, or of the healed one, on the held-out windows."""
    if not len(validation):
        return None
    blocks = graft.blocks
    losses = []
    with graft.in_place() if healed else blocks.bypass(removed):
        for window in validation:
            losses += next_token_losses(blocks.forward(window[None]).logits, window[None]).tolist()
    return Loss(tuple(losses)).perplexity


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value) for name, value in settings.items()
    }


def heal_model(
    session: Session,
    cut_folder: str | Path,
    settings: HealSettings,
    out: str | Path,
    run_folder: str | Path,
    *,
    overwrite: bool = False,
    verified: bool = True,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Heal a cut checkpoint; `session` is of the dense model. See `heal.run.heal_checkpoint`."""
    return heal_checkpoint(
        session,
        cut_folder,
        settings,
        out,
        run_folder,
        overwrite=overwrite,
        verified=verified,
        sample=sample_tokens(session.config),
        reporter=reporter,
    )
