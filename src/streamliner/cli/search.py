"""`streamliner search`."""

from streamliner.cli.command import MODEL, Argument, Given, command
from streamliner.cli.console import print_line, print_tables
from streamliner.settings import ModelSettings, SearchSettings

RUN = Argument("run", "Run folder for journal, frontier and plan", "RUN", ("--output", "-o"))


@command(
    MODEL,
    RUN,
    examples=(
        "search Qwen/Qwen3-0.6B --remove 20% -o runs/sleb",
        "search Qwen/Qwen3-0.6B --method streamline --remove 4 -o runs/s",
        "search Qwen/Qwen3-0.6B --remove 4 --calibration my.txt -o runs/m",
    ),
    recipes=True,
    Search=SearchSettings,
    Model=ModelSettings,
)
def search(given: Given) -> None:
    """Find the blocks to remove, and write them as a plan. The same command continues a killed search."""
    from streamliner.model.session import open_model
    from streamliner.verbs.search import search as run_search

    model, run = given.argument(MODEL), given.argument(RUN)
    session = open_model(model, given.settings(ModelSettings))
    found = run_search(session, given.settings(SearchSettings))
    if session.ranks.rank:  # one process of several prints
        return

    def table() -> None:
        print_tables(found.tables())
        print_line(f"Cut it with: streamliner cut {model} --plan {run} -o OUT")

    given.show(found.to_json(), run, table)
