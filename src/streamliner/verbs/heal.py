"""`streamliner heal`: train what takes the place of removed blocks, in models in memory or in a cut checkpoint."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamliner.cut.card import extend_model_card
from streamliner.cut.memory import cut_model
from streamliner.cut.parent import dense_model_of, plan_of
from streamliner.cut.verification import sample_tokens, verify_checkpoint, verify_model
from streamliner.errors import HealingError
from streamliner.heal.checks import (
    ANOTHER_MODEL,
    check_apart,
    check_healable,
    check_pair,
    check_same_type,
    check_same_weights,
    read_cut,
    tensors_on_disk,
)
from streamliner.heal.custom_code import FILE
from streamliner.heal.graft import Graft
from streamliner.heal.healing import Healing
from streamliner.heal.merge import merge
from streamliner.heal.networks.make import FEED_FORWARDS
from streamliner.heal.prepare import prepare_healing
from streamliner.heal.save import healed_reference, usual_precision, write_healed
from streamliner.heal.state import RESULT, RUN
from streamliner.model.devices import is_spread
from streamliner.model.load import load_model
from streamliner.model.session import Session, open_model
from streamliner.model.source import locate
from streamliner.runs.files import MARK, check_output, output_folder, write_json
from streamliner.runs.folder import check_run_folder
from streamliner.runs.terminal import Terminal
from streamliner.search.plan import check_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from streamliner.settings import HealSettings, ModelSettings


def heal(cut: PreTrainedModel, settings: HealSettings) -> PreTrainedModel:
    """Train what takes the place of the blocks that `streamliner.cut` removed, and return the healed model.

    Neither model changes: training runs on a second model that shares the dense one's weights, and what is trained gets
    memory of its own. The result, too, shares all other weights with the dense model.

    A network that no stock block can express (ffn; swiglu in some architectures) needs custom code: the result is then
    written to a temporary folder and loaded from there with `trust_remote_code`. Its `save_pretrained` saves the code.

    Args:
        cut: a model that knows its plan, as those that `streamliner.cut` returns.
        settings: `dense`, the model that was cut, in the same precision and on one device; `tokenizer`, if `dense` is
            in memory; network, losses, text, budget. `run` keeps the state of the training, so that the same call
            continues a run that was killed; None for a temporary folder.

    Returns:
        The healed model, frozen, in evaluation mode, with the weights that had the lowest validation loss.

    Raises:
        PlanError: the cut model does not say what was removed.
        UserError: the request cannot be fulfilled; the message says why.
        VerificationError: the healed model does not compute what was trained.
    """
    reporter = Terminal(settings.quiet)
    session, removed = _second_model(cut, settings, reporter)
    prepared = prepare_healing(session, settings, reporter)
    with tempfile.TemporaryDirectory(prefix="streamliner-") as name:
        scratch = Path(name)
        folder = check_run_folder(scratch / "run" if settings.run is None else settings.run, RUN)
        if settings.network in FEED_FORWARDS:
            cut.save_pretrained(scratch / "cut")
        healing = Healing(session, removed, prepared, folder, scratch / "cut", reporter)
        graft, measured = healing.train()
        sample = sample_tokens(session.config)
        result = healing.result(graft, merge(graft, graft.blocks.dtype, sample), measured)
        healed = _healed_model(graft, scratch)
        if settings.verify:
            result["verification"] = verify_model(healed, healed_reference(graft, sample)).to_json()
        write_json(folder / RESULT, result)
    return healed


def heal_to_folder(
    cut: str | Path, out: str | Path, settings: HealSettings, model_settings: ModelSettings
) -> dict[str, Any]:
    """`heal_checkpoint` for the command line: the dense model may be the one that the cut checkpoint names."""
    read_cut(cut)
    return heal_checkpoint(dense_model_of(cut, settings.dense, model_settings), cut, settings, out)


def heal_checkpoint(dense: Session, cut: str | Path, settings: HealSettings, out: str | Path) -> dict[str, Any]:
    """Train what takes the place of a cut checkpoint's removed blocks, and write the healed checkpoint.

    The run folder keeps the state of the training, the loss of each step, and the settings. The same call continues a
    run that was killed.

    Args:
        dense: the model that was cut; its loaded weights are changed and released.
        cut: folder that `cut` or `prune` wrote.
        settings: network, losses, text, budget; `run` is by default the output's name + ".run".
        out: folder for the checkpoint; it appears whole or not at all.

    Returns:
        JSON value: gaps, losses and perplexities before and after, steps, verification. Empty in all processes but the
        first.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.
        VerificationError: the written checkpoint is not the healed model.
    """
    reporter = Terminal(settings.quiet or dense.ranks.rank > 0)
    cut_folder, plan = read_cut(cut)
    hint = f"{ANOTHER_MODEL} It was cut from: {plan.model.get('name', '?')}"
    check_plan(plan, dense.identity, dense.num_blocks, hint)
    for model_folder in (dense.source.path or None, cut_folder):
        check_output(out, overwrite=settings.overwrite, model_folder=model_folder)
    folder = check_run_folder(settings.run or f"{str(out).rstrip('/')}.run", RUN)
    check_apart(Path(out), folder, cut_folder)
    prepared = prepare_healing(dense, settings, reporter)
    check_same_type(dense.config.model_type, cut_folder)
    check_same_weights(dense.load(reporter).model, plan.removed, tensors_on_disk(cut_folder), str(cut_folder))
    arguments = {"cut": str(cut), "output": str(out)}
    healing = Healing(dense, plan.removed, prepared, folder, cut_folder, reporter, arguments)
    graft, measured = healing.train()
    if dense.ranks.rank:  # one process writes
        return {}
    sample = sample_tokens(dense.config)
    result = healing.result(graft, merge(graft, usual_precision(cut_folder), sample), measured)
    with output_folder(out, overwrite=settings.overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        write_healed(graft, cut_folder, partial)
        if settings.verify:
            reference = healed_reference(graft, sample)
            del graft  # with it the dense model is released
            dense.release()
            reporter.say("Verifying: reload, logits against the healed model, generation with and without cache ...")
            trusted = dense.settings.trust_remote_code or result["custom_code"]
            result["verification"] = verify_checkpoint(partial, reference, trust_remote_code=trusted).to_json()
        mark = json.loads((cut_folder / MARK).read_text(encoding="utf-8"))
        write_json(partial / MARK, mark | {"healing": result})
        extend_model_card(partial, result, FILE)
    write_json(folder / RESULT, result)
    return result | {"output": str(out)}


def _second_model(cut: PreTrainedModel, settings: HealSettings, reporter: Terminal) -> tuple[Session, tuple[int, ...]]:
    """A model that shares the dense model's weights, and the removed blocks; both models are checked."""
    if settings.dense is None:
        raise HealingError("Healing needs the dense model.", "Pass dense=MODEL, the model that it was cut from.")
    given = open_model(settings.dense, tokenizer=settings.tokenizer)
    dense: PreTrainedModel = given.load(reporter).model if given.model is None else given.model
    check_healable(given.source.name, dense, dense.config, one_device=not is_spread(dense))
    removed = check_pair(cut, dense, plan_of(cut).removed)
    if given.ranks.size > 1:
        raise HealingError("Models in memory are healed in one process.", "Use: torchrun ... -m streamliner heal CUT")
    return Session.of(cut_model(dense, ()), name=given.source.name, tokenizer=given.tokenizer()), removed


def _healed_model(graft: Graft, scratch: Path) -> PreTrainedModel:
    """The healed model of a merged graft; with custom code it is written to the folder `scratch` and loaded."""
    if not graft.networks:
        return cut_model(graft.blocks.model, graft.removed)
    folder = scratch / "healed"
    folder.mkdir()
    write_healed(graft, scratch / "cut", folder)
    precision = str(graft.blocks.dtype).removeprefix("torch.")
    source = locate(str(folder), trust_remote_code=True)
    return load_model(source, dtype=precision, device=str(graft.blocks.device))
