"""The model card of a cut or healed checkpoint."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from streamliner.model.gguf_header import read_header
from streamliner.model.source import HUB_ID
from streamliner.search.frontier import note_of
from streamliner.search.plan import Plan, read_plan

KEPT = (
    *("license", "license_name", "license_link", "language", "tags", "datasets", "pipeline_tag", "base_model"),
    *("extra_gated_prompt", "extra_gated_heading", "extra_gated_button_content"),
)
"""Fields of the dense model's card that hold for the cut model too."""


def write_model_card(folder: Path, base: str, plan: Plan, result: dict[str, Any]) -> None:
    """Write README.md of a model cut from `base`; that of the dense model becomes README.dense.md."""
    card, meta = folder / "README.md", _metadata(folder / "README.md", base)
    if card.exists():
        names = ("README.dense.md", *(f"README.dense-{number}.md" for number in range(2, 100)))
        card.rename(next(folder / name for name in names if not (folder / name).exists()))
    _card(meta, _body(base, plan, result)).save(card)


def _body(base: str, plan: Plan, result: dict[str, Any]) -> str:
    """What a card says of a plan and of what it did."""
    losses = ""
    if plan.loss is not None and plan.dense_loss is not None and plan.calibration:
        source = plan.calibration["source"]
        losses = f"\nCalibration loss ({source}): {plan.dense_loss:.4f} before, {plan.loss:.4f} after.\n"
        losses += f"{note}\n" if (note := note_of(plan.settings)) else ""
    sizes = ""
    if "parameters_before" in result:
        sizes = f"Parameters: {result['parameters_before']:,} before, {result['parameters_after']:,} after.\n"
    return (
        f"# {Path(base).name} without {len(plan.removed)} of {plan.num_blocks} blocks\n\n"
        f"Removed blocks (0-based): {', '.join(map(str, plan.removed))}. Method: {plan.method}.\n{losses}\n{sizes}"
        "Made with streamliner; `streamliner.json` has the plan. The licence is that of the base model.\n"
    )


def _card(meta: dict[str, Any], text: str) -> Any:
    """A card of the hub's own library, with these fields at its top."""
    from huggingface_hub import ModelCard, ModelCardData

    return ModelCard(f"---\n{ModelCardData(**meta).to_yaml()}\n---\n\n{text}")


def card_for_hub(out: Path, repository: str, mark: dict[str, Any], result: dict[str, Any]) -> Any:
    """The card of a folder or GGUF file on the hub: the folder's own, or one from the file, with how to load it."""
    from huggingface_hub import ModelCard

    if out.is_dir():
        card = ModelCard((out / "README.md").read_text(encoding="utf-8"))
        trusted = ["trust_remote_code=True"] if mark.get("healing", {}).get("custom_code") else []
        arguments = ", ".join([f'"{repository}"', *trusted])
        ways = [f"- transformers: `AutoModelForCausalLM.from_pretrained({arguments})`"]
        if not trusted:
            ways += [
                f"- vLLM: `vllm serve {repository}`",
                "- llama.cpp: cut a GGUF file of the dense model by the plan in `streamliner.json`. (A converter may "
                "leave out which blocks attend to a window; llama.cpp then reads a cut model wrongly.)",
            ]
    else:
        keys, plan = read_header(out).keys, read_plan(out)
        base = str(plan.model.get("name", ""))
        fields = {"license": keys.get("general.license"), "language": keys.get("general.languages")}
        meta = {"library_name": "gguf"} | {name: value for name, value in fields.items() if value} | _base_of(base)
        text = _body(base, plan, result)
        card = _card(meta, text + (_healing(mark["healing"]) if "healing" in mark else ""))
        ways = [
            f"- llama.cpp: `llama-cli -hf {repository} -hff {out.name}`",
            f'- transformers: `AutoModelForCausalLM.from_pretrained("{repository}", gguf_file="{out.name}")`, '
            "which dequantises it",
        ]
    card.content = f"{card.content.rstrip()}\n\n## Load it\n\n" + "\n".join(ways) + "\n"
    return card


def licence_of(card: Any) -> str | None:
    """The licence that a card names."""
    found = card.data.to_dict().get("license")
    return None if found is None else str(found)


def _metadata(card: Path, base: str) -> dict[str, Any]:
    """What the hub reads at the top of a card: the licence and languages of the dense model's, and which that is.

    A path on this machine is no name on the hub, which would refuse the card: then the dense card's own base stays.
    """
    meta: dict[str, Any] = {}
    if card.is_file():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        with suppress(yaml.YAMLError, IndexError):
            found = yaml.safe_load(parts[1]) if not parts[0].strip() else None
            meta = {key: value for key, value in found.items() if key in KEPT} if isinstance(found, dict) else {}
    if isinstance(meta.get("tags"), str):
        meta["tags"] = [meta["tags"]]  # the hub's library would take each letter for one
    return {"library_name": "transformers"} | meta | _base_of(base)


def _base_of(base: str) -> dict[str, str]:
    on_hub = HUB_ID.fullmatch(base) and "/" in base and not Path(base).exists()
    return {"base_model": base, "base_model_relation": "finetune"} if on_hub else {}


def extend_model_card(folder: Path, result: dict[str, Any], code_file: str) -> None:
    """Add to README.md the `result` of a healing; `code_file` is the Python file that custom networks need."""
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(_healing(result, code_file))


def _healing(result: dict[str, Any], code_file: str = "") -> str:
    """What a card says of a healing."""
    settings = result["settings"]
    ranges = ((", ".join(map(str, range(gap["start"], gap["stop"]))), len(gap["places"])) for gap in result["gaps"])
    gaps = "; ".join(f"blocks {blocks} became {count}" for blocks, count in ranges)
    sources = ", ".join(name for name, _ in settings["data"])
    lines = ["\n## Healing\n"]
    kept = [each for each in result["folds"] if each["kept"]]
    if result["folds"]:
        fitted = ", ".join(str(each["block"]) for each in kept) or "none, as no repair lowered the loss"
        lines.append(
            f"Fold: {settings['fold']}, a repair in closed form on text of {sources}. Blocks fitted: {fitted}."
        )
    if settings["network"] != "none":
        lines.append(f"Network: {settings['network']}" + (f" ({gaps})." if gaps else "."))
    if settings["lora"]:
        lines.append(f"Adapters: LoRA of rank {settings['lora']}, merged.")
    if training := result["training"]:
        lines.append(
            f"Loss: {', '.join(settings['loss'])}. Trained on {training['tokens']:,} tokens of {sources}; "
            f"the state after step {training['best_step']} of {training['steps']} was kept."
        )
    perplexities = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
    measured = [f"{name} {value:.4g}" for name, value in perplexities.items() if math.isfinite(value)]
    if measured:
        lines.append(f"Perplexity on held-out windows: {', '.join(measured)}.")
    if result["custom_code"]:
        lines.append(f"The networks need the code in `{code_file}`: load with `trust_remote_code=True`.")
    return "\n".join(lines) + "\n"
