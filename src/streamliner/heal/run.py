"""Heal a cut checkpoint: train, put what was trained in place, write, verify."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from streamliner import models
from streamliner.blocks import Blocks
from streamliner.calibration import bos_tokens
from streamliner.cut import cut_model
from streamliner.cut.output import MARK, check_output, output_folder
from streamliner.cut.verify import expect, verify
from streamliner.errors import HealingError, ModelError, OutputError, PlanError
from streamliner.heal.custom_code import FILE
from streamliner.heal.graft import Graft
from streamliner.heal.mixture import PRESETS, Mixture
from streamliner.heal.objective import Objective, make_objective
from streamliner.heal.save import settle, write_healed
from streamliner.heal.settings import HealSettings
from streamliner.heal.state import BEST, HISTORY, STATE, load_tensors
from streamliner.heal.train import Trained, count_steps, make_accelerator, train
from streamliner.measure import Loss
from streamliner.measure.loss import next_token_losses
from streamliner.run import check_run_folder, check_same_run, environment, write_json
from streamliner.search import Plan, check_plan, read_plan
from streamliner.session import Reporter, Session, Silent, weights_hash

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
        overwrite: replace an output of streamliner's, and start a run anew.
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
    cut_path, plan = _read_cut(cut_folder)
    check_plan(plan, dense.identity, dense.num_blocks)
    check_output(out, overwrite=overwrite, model_folder=dense.source.path or None)
    check_output(out, overwrite=overwrite, model_folder=cut_path)
    folder = check_run_folder(run_folder, RUN)
    _check_plain(dense, cut_path)
    if not settings.data:
        settings = dataclasses.replace(settings, data=_usual_text(dense, reporter))
    tokenizer = models.load_tokenizer(dense.source)
    mixture = Mixture(
        settings.data,
        tokenizer,
        sequence_length=dense.window_length(settings.sequence_length),
        validation_windows=settings.validation_windows,
        seed=settings.seed,
    )
    steps = count_steps(settings, mixture)
    blocks = dense.load(reporter)
    _check_same_weights(blocks, plan.removed, cut_path)
    identity = {
        "model": dense.identity | {"weights": weights_hash(blocks.model)},
        "removed": list(plan.removed),
        "dtype": str(blocks.dtype),
        "steps": steps,
        "settings": _that_matter(settings),
    }
    objective = make_objective(blocks, plan.removed, settings, bos=bool(bos_tokens(tokenizer)))
    _announce(objective, settings, steps, mixture, reporter)
    accelerator = make_accelerator(settings, blocks.dtype, blocks.device, folder)
    if ranks.rank == 0:
        _enter(folder, identity, settings, overwrite)
    ranks.wait()
    if (folder / STATE).exists():
        done = load_tensors(folder / STATE)[1]["progress"]["step"]
        reporter.say(f"Continuing the run in {folder} after step {done} of {steps}.")
    if settings.track:
        accelerator.init_trackers("streamliner", config=_flat(dataclasses.asdict(settings)))
    before = _perplexities(objective.graft, mixture.validation, reporter) if ranks.rank == 0 else {}
    with reporter.training(steps) as on_row:
        trained = train(objective, mixture, settings, steps, accelerator, folder, identity, on_row)
    if settings.track:
        accelerator.end_training()
    if ranks.rank:
        return {}
    return _finish(
        dense,
        objective,
        plan,
        cut_path,
        out,
        trained,
        before,
        mixture.validation,
        settings,
        folder,
        overwrite=overwrite,
        verified=verified,
        sample=sample,
        reporter=reporter,
    )


def _finish(
    dense: Session,
    objective: Objective,
    plan: Plan,
    cut_path: Path,
    out: str | Path,
    trained: Trained,
    before: dict[str, Any],
    validation: Tensor,
    settings: HealSettings,
    folder: Path,
    *,
    overwrite: bool,
    verified: bool,
    sample: Tensor,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write and verify the checkpoint of a trained objective."""
    graft = objective.graft
    custom, wasted = settle(graft, cut_path, sample)
    after = _perplexity(graft, validation, healed=True)
    expected = None
    if verified:
        with graft.in_place():
            healed_logits = _logits(graft.blocks, sample)
        expected = dataclasses.replace(expect(graft.blocks, (), sample), logits=healed_logits)
    verification = None
    with output_folder(out, overwrite=overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        write_healed(graft, custom, cut_path, partial)
        dense.blocks = None
        if expected is not None:
            reporter.say("Verifying: reload, logits against the healed model, generation with and without cache ...")
            trusted = bool(custom) or dense.settings.trust_remote_code
            verification = verify(partial, expected, trust_remote_code=trusted).to_json()
        result = {
            "gaps": [{"start": gap.start, "stop": gap.stop, "places": list(gap.places)} for gap in graft.gaps],
            "removed": list(plan.removed),
            "blocks_before": dense.num_blocks,
            "blocks_after": dense.num_blocks - len(plan.removed),
            "custom_code": bool(custom),
            "parameters_for_nothing": wasted,
            "settings": dataclasses.asdict(settings),
            "training": dataclasses.asdict(trained),
            "validation_perplexity": before | {"healed": after},
            "verification": verification,
        }
        old = json.loads((cut_path / MARK).read_text(encoding="utf-8"))
        write_json(partial / MARK, old | {"healing": result})
        _extend_model_card(partial, plan, result)
    write_json(folder / "result.json", result)
    return result | {"output": str(out)}


def _read_cut(folder: str | Path) -> tuple[Path, Plan]:
    """The cut checkpoint's folder and its plan."""
    path = Path(folder).expanduser()
    if not path.is_dir() or not (path / "config.json").is_file():
        raise ModelError(f"There is no cut checkpoint {folder}.", "Make one with streamliner cut or prune.")
    if not (path / MARK).is_file():
        raise PlanError(
            f"{folder} holds no {MARK}, so what was removed from it is not known.",
            "Give a folder that streamliner cut or prune wrote.",
        )
    if "healing" in json.loads((path / MARK).read_text(encoding="utf-8")):
        raise HealingError(f"{folder} is healed already.", "Give the cut checkpoint that it was made from.")
    return path, read_plan(path)


def _usual_text(dense: Session, reporter: Reporter) -> tuple[tuple[str, float], ...]:
    if dense.source.kind == "hub":
        return PRESETS["slimpajama"]
    reporter.say("Training on python-docs, which needs no network and is little. Name your own text with --data.")
    return (("python-docs", 1.0),)


def _check_plain(dense: Session, cut_path: Path) -> None:
    config = json.loads((cut_path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise HealingError(
            f"The weights of {cut_path} are quantised, and trained ones would not be.",
            "Cut and heal the model that it was quantised from, then quantise that.",
        )
    if dense.settings.device == "auto" or dense.settings.offload:
        raise HealingError("Healing needs the whole model on one device.", "Name one with --device.")


def _check_same_weights(blocks: Blocks, removed: tuple[int, ...], cut_path: Path) -> None:
    """Raise ModelError unless the cut checkpoint's tensors are the dense model's: some values of each are compared."""
    tensors = cut_model(blocks.model, removed).state_dict()
    for path in sorted(cut_path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name not in tensors:  # named otherwise in memory
                    continue
                there, here = file.get_tensor(name).flatten(), tensors[name].flatten().cpu()
                step = max(1, len(there) // 256)
                if len(there) != len(here) or not torch.equal(here[::step].to(there.dtype), there[::step]):
                    raise ModelError(
                        f"{cut_path} was not cut from this dense model: {name} differs.",
                        "Give the model it was cut from with --dense.",
                    )


def _that_matter(settings: HealSettings) -> dict[str, Any]:
    """Settings that a run cannot change when it goes on."""
    free = ("save_every", "track", "micro_batch", "tokens", "steps", "epochs")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}


def _enter(folder: Path, identity: dict[str, Any], settings: HealSettings, overwrite: bool) -> None:
    """Make the run folder, or see that what is there is this run."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in (RUN, STATE, BEST, HISTORY):
            (folder / name).unlink(missing_ok=True)
    if (folder / RUN).exists():
        try:
            found = json.loads((folder / RUN).read_text(encoding="utf-8"))["identity"]
        except (json.JSONDecodeError, KeyError) as error:
            raise OutputError(f"{folder / RUN} cannot be read.", "Add --overwrite to start the run anew.") from error
        check_same_run(folder, found, identity)
    value = {"schema_version": 1, "identity": identity, "settings": dataclasses.asdict(settings)}
    write_json(folder / RUN, value | environment())


def _announce(objective: Objective, settings: HealSettings, steps: int, mixture: Mixture, reporter: Reporter) -> None:
    for gap in objective.graft.gaps:
        reporter.say(f"{gap}.")
    trainable = sum(parameter.numel() for parameter in objective.trainable().values())
    tokens = steps * settings.batch_size * mixture.sequence_length
    losses = " + ".join(f"{weight:g} {name}" for name, weight in settings.loss.items())
    reporter.say(
        f"Training {trainable:,} parameters on {losses}: {steps} steps of {settings.batch_size} windows of "
        f"{mixture.sequence_length} tokens, {tokens:,} tokens in all; {len(mixture.validation)} windows held out."
    )


@torch.no_grad()
def _logits(blocks: Blocks, sample: Tensor) -> Tensor:
    return blocks.forward(sample).logits.cpu()  # type: ignore[no-any-return]


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


def _extend_model_card(folder: Path, plan: Plan, result: dict[str, Any]) -> None:
    card = folder / "README.md"
    perplexity = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
    measured = ", ".join(f"{name} {value:.4g}" for name, value in perplexity.items() if math.isfinite(value))
    settings, training = result["settings"], result["training"]
    gaps = "; ".join(
        f"{gap['stop'] - gap['start']} blocks ({gap['start']} to {gap['stop'] - 1}) became {len(gap['places'])}"
        for gap in result["gaps"]
    )
    lines = [
        "\n## Healing\n",
        f"Network: {settings['network']}" + (f" ({gaps})." if gaps else "."),
        f"Adapters: LoRA of rank {settings['lora']}, merged." if settings["lora"] else "",
        f"Loss: {', '.join(settings['loss'])}. Trained on {training['tokens']:,} tokens of "
        f"{', '.join(name for name, _ in settings['data'])}; the state after step {training['best_step']} of "
        f"{training['steps']} was kept.",
        f"Perplexity on held-out windows: {measured}." if measured else "",
        f"The networks need the code in `{FILE}`: load with `trust_remote_code=True`." if result["custom_code"] else "",
    ]
    old = card.read_text(encoding="utf-8") if card.exists() else ""
    card.write_text(old + "\n".join(line for line in lines if line) + "\n", encoding="utf-8")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value) for name, value in settings.items()
    }
