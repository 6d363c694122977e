"""The version of what is installed; the build takes it from the git tag (`pyproject.toml`)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("streamliner")
except PackageNotFoundError:  # run from its source, without an installation
    __version__ = "0+unknown"
