"""`streamliner cut`."""

from typing import Any

from streamliner.cli.command import MODEL, Argument, Given, command
from streamliner.cli.console import print_line, print_tables
from streamliner.format import Table, human_bytes
from streamliner.settings import CutSettings, ModelSettings

OUT = Argument("output", "Folder for the checkpoint; of GGUF, also a .gguf file", "OUT", ("--output", "-o"))


@command(
    MODEL,
    OUT,
    examples=(
        "cut Qwen/Qwen3-0.6B --plan runs/sleb -o small",
        "cut Qwen/Qwen3-0.6B --blocks 3,7,9 -o small",
        "cut model.gguf --plan runs/sleb -o small.gguf",
    ),
    Cut=CutSettings,
    Model=ModelSettings,
)
def cut(given: Given) -> None:
    """Write the checkpoint without the blocks of a plan, and verify it against bypass on the dense model.

    With a GGUF file as MODEL and OUT, the file itself is cut: nothing is dequantised.
    """
    from streamliner.model.session import open_model
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.cut import chosen_plan, cut_to_disk

    check_alone("cut")
    settings, out = given.settings(CutSettings), given.argument(OUT)
    model, choose = given.argument(MODEL), chosen_plan(settings)
    result = cut_to_disk(open_model(model, given.settings(ModelSettings)), choose, out, settings)
    given.show(result, out, lambda: print_cut(result))


def print_cut(result: dict[str, Any]) -> None:
    """What was written, in the three measures of sparsity."""
    rows = [["", "dense", "cut", "saved"]]
    for name in ("blocks", "parameters", "bytes"):
        before, after = result[f"{name}_before"], result[f"{name}_after"]
        number = human_bytes if name == "bytes" else "{:,}".format
        rows.append([name, number(before), number(after), f"{1 - after / before:.1%}" if before else ""])
    print_tables([Table(rows, f"Removed blocks: {', '.join(map(str, result['removed']))}")])
    if left_out := result.get("left_out"):  # cut by an earlier release of a run that continues, it is not there
        print_line(f"Left out: {', '.join(left_out)}.")
    if "tensors_equal" in result:
        print_line(f"{result['tensors_equal']} tensors are those of the dense file, byte for byte.")
    if reason := result.get("logits_not_compared"):
        print_line(f"Logits not compared: {reason}")
    else:
        print_verification(result["verification"], "bypass on the dense model")
    print_line(f"Written to {result['output']}")


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
