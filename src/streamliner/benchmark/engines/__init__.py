"""Engines that benchmarks time, one file each."""
