"""The engines that a benchmark can time, one file each."""
