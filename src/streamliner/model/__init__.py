"""The only code that looks inside a model."""
