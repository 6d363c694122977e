"""The methods, one file each, and what they give: the frontier and the plan."""

from streamliner.search.frontier import Frontier, Point
from streamliner.search.plan import Plan, check_plan, model_identity, read_plan
from streamliner.search.registry import Method, make_method, method_class, method_names
from streamliner.search.run import make_plan, parse_increase, parse_remove, search

__all__ = [
    "Frontier",
    "Method",
    "Plan",
    "Point",
    "check_plan",
    "make_method",
    "make_plan",
    "method_class",
    "method_names",
    "model_identity",
    "parse_increase",
    "parse_remove",
    "read_plan",
    "search",
]
