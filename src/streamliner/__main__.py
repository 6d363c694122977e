"""`python -m streamliner`."""

from streamliner.cli import main

main()
