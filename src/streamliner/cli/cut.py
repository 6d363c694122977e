"""`streamliner cut`."""

from typing import Any

from streamliner.cli.command import MODEL, Argument, Given, command
from streamliner.cli.console import print_line, print_tables
from streamliner.format import Table, human_bytes
from streamliner.settings import CutSettings, HubSettings, ModelSettings

OUT = Argument("output", "Folder, .gguf file (for GGUF), or hub:USER/NAME", "OUT", ("--output", "-o"))


@command(
    MODEL,
    OUT,
    examples=(
        "cut Qwen/Qwen3-0.6B --plan runs/sleb -o small",
        "cut Qwen/Qwen3-0.6B --blocks 3,7,9 -o small",
        "cut model.gguf --plan runs/sleb -o small.gguf",
    ),
    Cut=CutSettings,
    Hub=HubSettings,
    Model=ModelSettings,
)
def cut(given: Given) -> None:
    """Write the model without the blocks of a plan, and verify that it computes what it should.

    If MODEL and OUT are GGUF files, the file itself is cut, and nothing is dequantised.
    """
    from streamliner.model.session import open_model
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.cut import chosen_plan, cut_to_disk
    from streamliner.verbs.publish import find_destination, publish

    check_alone("cut")
    settings, model = given.settings(CutSettings), given.argument(MODEL)
    choose = chosen_plan(settings)
    place = find_destination(given.argument(OUT), given.settings(HubSettings), overwrite=settings.overwrite)
    result = cut_to_disk(open_model(model, given.settings(ModelSettings)), choose, place.out, settings)
    hub = publish(place, result)

    def table() -> None:
        print_cut(result)
        print_hub(hub)

    given.show(result | hub, place.out, table)


def print_cut(result: dict[str, Any]) -> None:
    """What was written, in the three measures of sparsity."""
    rows = [["", "dense", "cut", "saved"]]
    for name in ("blocks", "parameters", "bytes"):
        before, after = result[f"{name}_before"], result[f"{name}_after"]
        number = human_bytes if name == "bytes" else "{:,}".format
        rows.append([name, number(before), number(after), _saved(before, after)])
    print_tables([Table(rows, f"Removed blocks: {', '.join(map(str, result['removed']))}")])
    if result["bytes_after"] > result["bytes_before"] > 0:
        print_line("Weights take more space in a folder than in the GGUF file. -o NAME.gguf cuts the file itself.")
    if left_out := result.get("left_out"):  # cut by an earlier release of a run that continues, it is not there
        print_line(f"Left out: {', '.join(left_out)}.")
    if linked := result.get("linked"):
        print_line(_linked(linked))
    if "tensors_equal" in result:
        print_line(f"{result['tensors_equal']} tensors are those of the dense file, byte for byte.")
    if reason := result.get("logits_not_compared"):
        print_line(f"Logits not compared: {reason}")
    else:
        print_verification(result["verification"], "bypass on the dense model")
    print_line(f"Written to {result['output']}")


def _saved(before: int, after: int) -> str:
    """A share of what was there before; "" if that is not known."""
    if not before:
        return ""
    return f"none: {after / before:.1f}x" if after > before else f"{1 - after / before:.1%}"


def _linked(linked: dict[str, Any]) -> str:
    """What `--link` did."""
    made = ((linked["reflinks"], "reflinks"), (linked["hard_links"], "hard links (editing one edits both)"))
    parts = [f"{count} of {linked['shards']} weight files are {what}" for count, what in made if count]
    parts += [f"not linked: {linked['not_linked']}"] if linked["not_linked"] else []
    parts += [] if linked["unchanged"] else ["No weight file stays as it is, so none is linked"]
    return f"{'; '.join(parts)}."


def print_verification(check: dict[str, Any] | None, reference: str) -> None:
    """What verification compared."""
    from streamliner.cut.verification import Verification

    if check is None:
        print_line("Not verified (--no-verify).")
        return
    print_line(
        f"Verified in {check['dtype']} on {check['tokens']} tokens: reloads with clean keys; logits differ by at most "
        f"{check['max_logit_difference']:.2g} from {reference}; {Verification.from_json(check).generation}."
    )


def print_hub(found: dict[str, Any]) -> None:
    """Where a result was uploaded to; nothing if it was not."""
    if hub := found.get("hub"):
        print_line(f"Uploaded to {hub['url']}")
        if hub["licence"] is None:
            print_line("The dense model's card names no licence, so this one does not either: add it there.")
