"""`streamliner heal`: train what takes the place of removed blocks, in models in memory or in a cut checkpoint."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from streamliner.cut.card import extend_model_card
from streamliner.cut.gguf import compare_gguf, replace_in_gguf, write_gguf
from streamliner.cut.memory import cut_model
from streamliner.cut.parent import dense_model_of, plan_of
from streamliner.cut.structure import Structure
from streamliner.cut.verification import sample_tokens, verify_checkpoint, verify_gguf, verify_model
from streamliner.errors import HealingError
from streamliner.format import number
from streamliner.heal.checks import ANOTHER_MODEL, check_checkpoint, check_healable, check_pair, read_cut
from streamliner.heal.custom_code import FILE
from streamliner.heal.graft import Graft
from streamliner.heal.healing import Healing, prepare_healing
from streamliner.heal.save import healed_reference, usual_precision, write_healed
from streamliner.heal.save_gguf import StoredWeights, check_gguf_healing, store_weights
from streamliner.heal.state import RESULT, RUN
from streamliner.heal_settings import HealSettings
from streamliner.model.devices import is_spread
from streamliner.model.load import load_model
from streamliner.model.mark import GGUF_MARK, is_gguf, read_mark
from streamliner.model.session import Session, open_model
from streamliner.model.source import locate
from streamliner.runs.files import PLAN_ATTRIBUTE, finite, write_json
from streamliner.runs.folder import check_run_folder
from streamliner.runs.outputs import MARK, check_output, check_outside, output_file, output_folder
from streamliner.runs.reporter import Reporter
from streamliner.search.plan import Plan, check_plan
from streamliner.settings import ModelSettings
from streamliner.types import PreTrainedModel
from streamliner.verbs.cut import check_cut_output


def heal(cut: PreTrainedModel, settings: HealSettings) -> PreTrainedModel:
    """Repair a model that `streamliner.cut` cut, by a fold, by training or both, and return the healed model.

    Neither model is changed: trained weights are copies. The result shares all other weights with the dense model.
    A network that no stock block can express (ffn; swiglu in some architectures) needs custom code: the result
    is then written to a temporary folder and loaded from there with `trust_remote_code`; `save_pretrained` saves it.

    Args:
        cut: a model from `streamliner.cut`, which knows its plan.
        settings: `dense`, the model that was cut, in the same precision and on one device; `tokenizer`, if `dense` is
            in memory; network, losses, text, budget. With `run`, the same call continues a run that was killed.

    Returns:
        The healed model, frozen, in evaluation mode, with the weights that had the lowest validation loss.

    Raises:
        PlanError: the cut model does not say what was removed.
        UserError: the request cannot be fulfilled; the message says why.
        VerificationError: the healed model does not compute what was trained.
    """
    reporter, plan = Reporter(settings.quiet), plan_of(cut)
    session = _second_model(cut, plan, settings, reporter)
    prepared = prepare_healing(session, settings, reporter)
    with tempfile.TemporaryDirectory(prefix="streamliner-") as name:
        scratch = Path(name)
        folder = check_run_folder(scratch / "run" if settings.run is None else settings.run, RUN)
        if settings.custom_network:
            cut.save_pretrained(scratch / "cut")
        graft, result = Healing(session, plan.removed, prepared, folder, scratch / "cut", reporter).train()
        if graft.networks:  # custom code is in files only
            out, blocks = Path(tempfile.mkdtemp(dir=scratch)), graft.blocks
            write_healed(graft, scratch / "cut", out)
            source, dtype = locate(str(out), trust_remote_code=True), str(blocks.dtype).removeprefix("torch.")
            healed = load_model(source, dtype=dtype, device=str(blocks.device))
        else:
            healed = cut_model(graft.blocks.model, graft.removed)
        if settings.verify:
            reference = healed_reference(graft, sample_tokens(session.config))
            result["verification"] = verify_model(healed, reference).to_json()
        write_json(folder / RESULT, result)
    found = {name: number(value) for name, value in result["validation_perplexity"].items() if value is not None}
    if found:
        reporter.say(
            f"Perplexity on held-out windows: {', '.join(f'{name} {value}' for name, value in found.items())}."
        )
    setattr(healed, PLAN_ATTRIBUTE, dataclasses.replace(plan, method=f"{plan.method}, healed"))
    return healed


def heal_to_disk(
    cut: str | Path, out: str | Path, settings: HealSettings, model: Session | ModelSettings
) -> dict[str, Any]:
    """Train what takes the place of a cut checkpoint's removed blocks; then `out` appears, the healed checkpoint.

    A GGUF file is healed into a GGUF file, a folder into a folder. The run folder, by default the output's name +
    ".run", keeps the state of the training, the loss of each step, and the settings. The same call continues a run that
    was killed. `model` is the dense model, whose loaded weights change and are released, or how to load the one that is
    named.

    Returns:
        JSON value: gaps, losses and perplexities before and after, steps, verification; {} in all but one process.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.
        VerificationError: the written checkpoint is not the healed model.
    """
    place, plan = read_cut(cut, out)
    if is_gguf(place):
        check_gguf_healing(place, settings)
    dense = model if isinstance(model, Session) else dense_model_of(cut, settings.dense, model)
    reporter = Reporter(settings.quiet or dense.ranks.rank > 0)
    hint = f"{ANOTHER_MODEL} It was cut from: {plan.model.get('name', '?')}"
    check_plan(plan, dense.identity, dense.num_blocks, hint)
    if is_gguf(place):
        check_cut_output(dense, out, overwrite=settings.overwrite, cut=place)
    else:
        for model_folder in (dense.source.path or None, place):
            check_output(out, overwrite=settings.overwrite, model_folder=model_folder)
    folder = check_run_folder(settings.run or f"{str(out).rstrip('/')}.run", RUN)
    check_outside("output", Path(out), {"run folder": folder, "cut checkpoint": place})
    check_outside("run folder", folder, {"output": Path(out), "cut checkpoint": place})
    settings = dataclasses.replace(settings, run=folder)
    prepared = prepare_healing(dense, settings, reporter)
    on = "cpu" if settings.shard else None  # whole it may not fit on a GPU
    check_checkpoint(place, dense.load(reporter, device=on).model, plan.removed)
    arguments = {"cut": str(cut), "output": str(out)}
    healing = Healing(dense, plan.removed, prepared, folder, place, reporter, arguments)
    write = _heal_file if is_gguf(place) else _heal_folder
    result = write(healing, Path(out))
    if result:  # empty in all processes but the first
        write_json(folder / RESULT, result)
        result["output"] = str(out)
    return result


def _heal_folder(healing: Healing, out: Path) -> dict[str, Any]:
    """Heal, and write the folder `out`; returns the result, {} in all processes but the first."""
    dense, settings, reporter = healing.dense, healing.prepared.settings, healing.reporter
    cut_folder = healing.cut_folder
    graft, result = healing.train(usual_precision(cut_folder))
    if dense.ranks.rank:  # one process writes
        return {}
    with output_folder(out, overwrite=settings.overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        write_healed(graft, cut_folder, partial)
        if settings.verify:
            reference = healed_reference(graft, sample_tokens(dense.config))
            del graft  # with it the dense model is released
            dense.release()
            reporter.say("Verifying: reload, logits against the healed model, generation with and without cache ...")
            trusted = dense.settings.trust_remote_code or result["custom_code"]
            place = dense.device_map(Structure(dense.shell).cut_shell(healing.removed))
            found = verify_checkpoint(partial, reference, trust_remote_code=trusted, device_map=place)
            result["verification"] = found.to_json()
        write_json(partial / MARK, json.loads((cut_folder / MARK).read_bytes()) | {"healing": result})
        extend_model_card(partial, result, FILE)
    return result


def _heal_file(healing: Healing, out: Path) -> dict[str, Any]:
    """The same for a GGUF file: tensors that changed are written in the types that they have, all else as it is."""
    dense, settings, reporter = healing.dense, healing.prepared.settings, healing.reporter
    cut_file = healing.cut_folder
    found: list[StoredWeights] = []

    def store(graft: Graft) -> dict[str, Any]:
        found.append(store_weights(graft, cut_file))
        return found[0].report

    graft, result = healing.train(store=store)
    if dense.ranks.rank:
        return {}
    weights, structure, removed = found[0], Structure(dense.shell), graft.removed
    mark = json.dumps(finite((read_mark(cut_file) or {}) | {"healing": result}))
    new = replace_in_gguf(cut_file, weights.data, {GGUF_MARK: mark})
    with output_file(out, overwrite=settings.overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        write_gguf(new, partial)
        if settings.verify:
            reference = healed_reference(graft, sample_tokens(dense.config))
            del graft
            dense.release()
            reporter.say("Verifying: bytes and values of tensors, logits against the healed model, generation ...")
            compare_gguf(partial, new)
            verified = verify_gguf(partial, reference, structure, removed, healed=weights.values)
            result["verification"] = verified.to_json()
    return result


def _second_model(cut: PreTrainedModel, plan: Plan, settings: HealSettings, reporter: Reporter) -> Session:
    """A model that shares the weights of the dense one; both models are checked."""
    if settings.dense is None:
        raise HealingError("Healing needs the dense model.", "Pass dense=MODEL, the model that it was cut from.")
    given = open_model(settings.dense, tokenizer=settings.tokenizer)
    dense: PreTrainedModel = given.load(reporter).model if given.model is None else given.model
    check_healable(given.source.name, dense, dense.config, one_device=not is_spread(dense))
    check_pair(cut, dense, plan.removed)
    if given.ranks.size > 1:
        raise HealingError("A model in memory is healed in one process.", "Use: torchrun ... -m streamliner heal CUT")
    return Session.of(cut_model(dense, ()), name=given.source.name, tokenizer=given.tokenizer())
