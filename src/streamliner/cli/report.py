"""`streamliner report`."""

from streamliner.cli.command import Argument, Given, command
from streamliner.cli.console import print_line
from streamliner.settings import ReportSettings

SOURCES = Argument("sources", "Run folders; JSON files of evaluate and benchmark", "RUN...", several=True)


@command(SOURCES, examples=("report runs/sleb evaluation.json benchmark.json -o report.html",), Report=ReportSettings)
def report(given: Given) -> None:
    """Show runs on one page: searches, frontier, healing, evaluation, speed, and how to repeat them."""
    from streamliner.verbs.report import report as write

    files = [str(file) for file in write(given.argument(SOURCES), given.settings(ReportSettings))]
    given.show({"files": files}, files[0], lambda: print_line(f"Written to {' and '.join(files)}"))
