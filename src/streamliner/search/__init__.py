"""The methods that choose blocks to remove, and their results: frontier and plan."""

# Method files of earlier releases import it from here; today's from `streamliner`.
from streamliner.search.frontier import Point as Point
