"""What came of runs, as one HTML page without anything from elsewhere, and as Markdown."""

from streamliner.report.write import pictures_folder, write_report

__all__ = ["pictures_folder", "write_report"]
