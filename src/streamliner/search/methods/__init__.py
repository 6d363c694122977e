"""The search methods, one file each. The folder is the registry (`search/registry.py`)."""
