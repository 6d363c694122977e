"""`streamliner report`: one page of what runs found."""

from collections.abc import Sequence
from pathlib import Path

from streamliner.errors import OutputError
from streamliner.report.render import pictures_folder, write_report
from streamliner.runs.outputs import check_result_file
from streamliner.settings import ReportSettings


def report(sources: Sequence[str], settings: ReportSettings) -> list[Path]:
    """Write the report of run folders and result files; returns the page, the Markdown and the folder of pictures.

    Raises:
        OutputError: the output exists, or there is nothing to report.
    """
    path = Path(settings.output).expanduser()
    if path.suffix not in (".html", ".htm"):
        raise OutputError(f"{settings.output} is not the name of an HTML file.", "Write for instance -o report.html.")
    for file in (path, path.with_suffix(".md")):
        check_result_file(file, overwrite=settings.overwrite)
    if pictures_folder(path).exists() and not settings.overwrite:
        raise OutputError(f"The output {pictures_folder(path)} exists.", "Choose another name, or add --overwrite.")
    return write_report(sources, path)
