"""Applying a plan: to a config, to a model in memory, to a checkpoint on disk; and proving that it is right."""
