"""Closed-form repairs: one file for each."""
