"""`streamliner verify`."""

from streamliner.cli.command import Given, command
from streamliner.cli.console import print_line
from streamliner.cli.cut import print_verification
from streamliner.cli.heal import CUT
from streamliner.settings import ModelSettings, VerifySettings


@command(
    CUT,
    examples=("verify small", "verify small --dense Qwen/Qwen3-0.6B"),
    without=("offload",),
    Verify=VerifySettings,
    Model=ModelSettings,
)
def verify(given: Given) -> None:
    """Compare a cut checkpoint with its dense model, whose removed blocks are bypassed."""
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.verify import verify_folder

    check_alone("verify")
    cut = given.argument(CUT)
    check = verify_folder(cut, given.settings(VerifySettings), given.settings(ModelSettings)).to_json()

    def table() -> None:
        print_verification(check, "bypass on the dense model")
        print_line(f"{cut} is right.")

    given.show(check, cut, table)
