"""What came of runs, as one HTML page without anything from elsewhere, and as Markdown."""

from streamliner.report.write import write_report

__all__ = ["write_report"]
