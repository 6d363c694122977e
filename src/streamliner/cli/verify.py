"""`streamliner verify`."""

import sys

from streamliner.cli.command import Argument, Given, command
from streamliner.cli.console import print_line
from streamliner.cli.cut import print_verification
from streamliner.format import counted
from streamliner.settings import ModelSettings, VerifySettings

FILES = Argument("cut", "Folder or GGUF file, written by any tool", "MODEL")


@command(
    FILES,
    examples=(
        "verify small",
        "verify small --dense Qwen/Qwen3-0.6B",
        "verify broken.gguf --dense model.gguf --mend -o mended.gguf",
    ),
    without=("offload",),
    Verify=VerifySettings,
    Model=ModelSettings,
)
def verify(given: Given) -> None:
    """Find what is wrong with the files of a model, and check that a cut model computes what it should.

    The exit status is 1 if there is a fault. --mend writes a corrected copy.
    """
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.verify import verify_files

    check_alone("verify")
    cut, settings = given.argument(FILES), given.settings(VerifySettings)
    result = verify_files(cut, settings, given.settings(ModelSettings))
    faults, mended = result["faults"], result["mended"]

    def table() -> None:
        if faults:
            print_line(f"{counted(len(faults), 'fault')} in {cut}")
            for each in faults:
                print_line(f"- {each['where']}: {each['what']} {_remedy(each['mend'])}")
            beyond = sum(not each["mend"] for each in faults)
            if mended:
                print_line(f"A copy without them: {mended}")
            elif not beyond:
                print_line("Add --mend -o OUT for a copy without them.")
            elif settings.dense is None:
                print_line(f"{beyond} cannot be mended with these files alone. With --dense MODEL, --mend can do more.")
            return
        if settings.output is not None:
            print_line(f"There is nothing to mend: {settings.output} was not written.")
        if result["removed"] and not result["verification"]:
            print_line(f"Removed blocks: {', '.join(map(str, result['removed']))}")
        if result["unchecked"]:
            print_line(f"Not checked whether all tensors are there: {result['unchecked']}")
        if result["verification"]:
            print_verification(result["verification"], "bypass on the dense model")
            print_line(f"{cut} is right.")
        else:
            print_line(f"No fault was found in the files of {cut}.")
            print_line(f"Its logits were not compared. {result['not_compared']}")

    given.show(result, mended or cut, table)
    if faults and not mended:
        sys.exit(1)


def _remedy(mend: str) -> str:
    """What `--mend` does about a fault; it can do nothing if `mend` is empty."""
    return f"--mend {mend}" if mend else "This cannot be mended."
