"""`streamliner heal`."""

from typing import Any

from streamliner.cli.command import Argument, Given, command
from streamliner.cli.console import print_line, print_tables
from streamliner.cli.cut import OUT, print_hub, print_verification
from streamliner.format import Table, number
from streamliner.heal.folds.fold_table import fold_table
from streamliner.heal_settings import HealSettings
from streamliner.settings import HubSettings, ModelSettings

CUT = Argument("cut", "Folder or GGUF file that streamliner cut", "CUT")


@command(
    CUT,
    OUT,
    examples=("heal small --loss kd --data my.jsonl --tokens 2M -o healed", "heal small --fold refit -o folded"),
    recipes=True,
    Heal=HealSettings,
    Hub=HubSettings,
    Model=ModelSettings,
)
def heal(given: Given) -> None:
    """Repair a cut model: train networks in place of removed blocks, or change weights in closed form (--fold).

    If blocks were removed in a row, a lightweight network takes the place of the kept block before them: with 8
    removed, 9 blocks become 1. The healed model has as many blocks as the cut one. The same command continues a
    killed run.
    """
    from streamliner.verbs.heal import heal_to_disk
    from streamliner.verbs.publish import find_destination, publish

    settings, model_settings = given.settings(HealSettings), given.settings(ModelSettings)
    place = find_destination(given.argument(OUT), given.settings(HubSettings), overwrite=settings.overwrite)
    result = heal_to_disk(given.argument(CUT), place.out, settings, model_settings)
    if not result:  # in all processes but the first
        return
    hub = publish(place, result)

    def table() -> None:
        print_healed(result)
        print_hub(hub)

    given.show(result | hub, place.out, table)


def print_healed(result: dict[str, Any]) -> None:
    """What became of the blocks, and the effect."""
    gaps = [f"{gap['stop'] - gap['start']} blocks become {len(gap['places'])}" for gap in result["gaps"]]
    before, after = result["blocks_before"], result["blocks_after"]
    title = f"{before} blocks dense, {after} healed" + (f" ({', '.join(gaps)})" if gaps else "")
    perplexity = {name: value for name, value in result["validation_perplexity"].items() if value is not None}
    if perplexity:
        cells = ["perplexity on held-out windows", *map(number, perplexity.values())]
        print_tables([Table([["", *perplexity], cells], title)])
    else:
        print_line(title)
    if result["folds"]:
        print_tables([fold_table(result["folds"])])
    if training := result["training"]:
        best = (
            f"; kept the state after step {training['best_step']}, the best on held-out windows: validation loss "
            f"{training['first_loss']:.4g} before, {training['best_loss']:.4g} after."
        )
        print_line(
            f"Trained on {training['tokens']:,} tokens in {training['steps']} steps"
            + (best if perplexity else ", without validation.")
        )
    if perplexity and perplexity["healed"] > perplexity["cut"]:
        print_line("Warning: the healed model is worse than the cut one on held-out windows.")
        print_line("Train longer, or with --loss lm.")
    if result["custom_code"]:
        print_line(
            "No stock class has such a network, so the checkpoint carries its own code: load it with "
            "trust_remote_code=True. vLLM, llama.cpp and GGUF do not support it; they do with --network block."
        )
    elif result["unused_parameters"]:
        print_line(
            f"Each network is stored as a stock block whose attention outputs zero: "
            f"{result['unused_parameters']:,} unused parameters stored."
        )
    if stored := result.get("stored"):
        print_line(stored_note(stored))
    print_verification(result["verification"], "the healed model in memory")
    print_line(f"Written to {result['output']}")
    print_line(f"Measure it on other text: streamliner evaluate {result['output']} --dense MODEL --perplexity SOURCE")


def stored_note(stored: dict[str, Any]) -> str:
    """In which types of a GGUF file the healed tensors were written."""
    types = ", ".join(f"{count} in {kind}" for kind, count in stored["changed"].items()) or "none"
    note = f"Tensors that changed: {types}; all others as in the cut file."
    if stored["largest_error"]:
        note += f" Rounding to these types changed each by at most {stored['largest_error']:.2%} (root mean square)."
    if names := stored["in_float16"]:
        note += f" F16, as the gguf library cannot write the type that they had: {', '.join(names)}."
    return note
