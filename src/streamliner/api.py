"""The verbs for Python: the functions of `verbs/`, with the settings as keywords.

They work on models in memory, and on names of models: hub ids, folders and GGUF files.
"""

from streamliner.fields import with_keywords
from streamliner.heal_settings import HealSettings
from streamliner.settings import BenchmarkSettings, EvaluateSettings, SearchSettings
from streamliner.verbs import benchmark as _benchmark, evaluate as _evaluate, heal as _heal, search as _search

search = with_keywords(SearchSettings)(_search.search)
heal = with_keywords(HealSettings)(_heal.heal)
evaluate = with_keywords(EvaluateSettings)(_evaluate.evaluate)
benchmark = with_keywords(BenchmarkSettings)(_benchmark.benchmark)
