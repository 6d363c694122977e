"""`streamliner verify`."""

from streamliner.cli.command import Argument, Given, command
from streamliner.cli.console import print_line, show
from streamliner.cli.cut import print_verification
from streamliner.settings import ModelSettings, VerifySettings

CUT = Argument("cut", "Folder that streamliner cut or prune wrote", "CUT")


@command(CUT, without=("offload",), Verify=VerifySettings, Model=ModelSettings)
def verify(given: Given) -> None:
    """Compare a cut checkpoint with its dense model, whose removed blocks are bypassed."""
    from streamliner.verbs.verify import verify_folder

    cut = given.argument(CUT)
    check = verify_folder(cut, given.settings(VerifySettings), given.settings(ModelSettings)).to_json()

    def table() -> None:
        print_verification(check, "bypass on the dense model")
        print_line(f"{cut} is right.")

    show(check, cut, table, as_json=given.json, quiet=given.quiet)
