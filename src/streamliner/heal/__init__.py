"""Healing: train what takes the place of removed blocks (LLM-Streamline, arXiv 2403.19135), or adapters."""
