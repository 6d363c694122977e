"""Text: sources, calibration and evaluation windows, and the stream of training windows."""
