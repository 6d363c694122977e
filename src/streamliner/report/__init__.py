"""What came of runs, as one HTML page without anything from elsewhere, and as Markdown."""
