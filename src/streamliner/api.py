"""The verbs for Python: the functions of `verbs/`, with the settings as keywords.

They work on models in memory, and on names of models: hub ids, folders and GGUF files.
"""

from typing import Any

from streamliner.errors import UserError, did_you_mean
from streamliner.fields import flags_of, with_keywords
from streamliner.heal_settings import HealSettings
from streamliner.runs.yaml_config import read_recipe
from streamliner.settings import BenchmarkSettings, EvaluateSettings, SearchSettings
from streamliner.verbs import benchmark as _benchmark, evaluate as _evaluate, heal as _heal, search as _search

search = with_keywords(SearchSettings)(_search.search)
heal = with_keywords(HealSettings)(_heal.heal)
evaluate = with_keywords(EvaluateSettings)(_evaluate.evaluate)
benchmark = with_keywords(BenchmarkSettings)(_benchmark.benchmark)


def recipe(name: str, verb: str, **changes: Any) -> dict[str, Any]:
    """Settings of a recipe as keywords: `heal(small, dense=model, **recipe("good", "heal", tokens="20k"))`.

    Args:
        name: as after `--recipe`.
        verb: "search" or "heal".
        changes: settings that replace the recipe's.

    Raises:
        UserError: there is no such recipe, or the verb takes none.
    """
    takes: dict[str, type] = {"search": SearchSettings, "heal": HealSettings}
    if verb not in takes:
        raise UserError(f"{verb} takes no recipe.", did_you_mean(verb, takes, f"Write one of {', '.join(takes)}."))
    return read_recipe(name, flags_of(takes[verb]), changes) | changes
