"""`streamliner evaluate`."""

from streamliner.cli.command import MODELS, Given, command
from streamliner.cli.console import print_tables
from streamliner.settings import EvaluateSettings, ModelSettings


@command(
    MODELS,
    examples=(
        "evaluate small --dense Qwen/Qwen3-0.6B --perplexity wikitext2:test",
        "evaluate small healed --dense Qwen/Qwen3-0.6B --tasks arc_easy",
    ),
    without=("offload",),
    Evaluate=EvaluateSettings,
    Model=ModelSettings,
)
def evaluate(given: Given) -> None:
    """Measure perplexity and tasks of models, and compare them with the dense model.

    All models get the same windows and questions. Every result is cached at once, so the same command continues a
    stopped evaluation, and a dense model is measured only once. After Ctrl-C the table has what was measured, also
    drafts and samples.
    """
    from streamliner.runs.ranks import check_alone
    from streamliner.verbs.evaluate import evaluate as run_evaluate

    check_alone("evaluate")
    settings = given.settings(EvaluateSettings)
    result = run_evaluate(given.argument(MODELS), settings, given.settings(ModelSettings))
    given.show(result.to_json(), settings.output, lambda: print_tables(result.tables()))
    if result.stopped:
        given.stopped("Stopped before all was measured.", settings.output)
