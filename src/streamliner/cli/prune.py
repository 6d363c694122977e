"""`streamliner prune`."""

from streamliner.cli.command import MODEL, Given, command
from streamliner.cli.console import print_tables
from streamliner.cli.cut import OUT, print_cut, print_hub
from streamliner.cli.heal import print_healed
from streamliner.errors import UserError
from streamliner.fields import flags_of, long_name
from streamliner.heal_settings import HealSettings
from streamliner.settings import HubSettings, ModelSettings, PruneSettings, SearchSettings


@command(
    MODEL,
    OUT,
    examples=(
        "prune Qwen/Qwen3-0.6B --remove 20% -o small",
        "prune Qwen/Qwen3-0.6B --remove 4 --heal --tokens 2M -o small",
        "prune Qwen/Qwen3-0.6B --target-speedup 1.25 --recipe quick -o fast",
    ),
    without=("dense",),
    recipes=True,
    Search=SearchSettings,
    Prune=PruneSettings,
    Heal=HealSettings,
    Hub=HubSettings,
    Model=ModelSettings,
)
def prune(given: Given) -> None:
    """Search, cut and verify; with --heal or --fold also heal.

    OUT appears only when everything is done. The same command continues a killed run. Every flag of search and heal
    works here. --remove N removes N blocks, with and without --heal.
    """
    from streamliner.model.session import open_model
    from streamliner.verbs.prune import prune as run_prune
    from streamliner.verbs.publish import find_destination, publish

    search_settings, prune_settings = given.settings(SearchSettings), given.settings(PruneSettings)
    place = find_destination(given.argument(OUT), given.settings(HubSettings), overwrite=search_settings.overwrite)
    session = open_model(given.argument(MODEL), given.settings(ModelSettings))
    pruned = run_prune(session, place.out, search_settings, _heal_settings(given), prune_settings)
    if session.ranks.rank:  # one process of several prints
        return

    hub = publish(place, pruned.cut)

    def table() -> None:
        print_tables(pruned.found.tables())
        print_cut(pruned.cut)
        if pruned.healed is not None:
            print_healed(pruned.healed)
        if pruned.speed is not None:
            print_tables(pruned.speed.tables())
        print_hub(hub)

    given.show(pruned.to_json() | hub, place.out, table)


def _heal_settings(given: Given) -> HealSettings | None:
    if given.settings(PruneSettings).heal or given.value("fold"):
        return given.settings(HealSettings)
    only_heal = flags_of(HealSettings).keys() - flags_of(SearchSettings).keys() - {"verify"}
    idle = sorted(only_heal & given.names)  # a recipe may have settings for both
    if idle:
        raise UserError(
            f"Healing options need --heal or --fold: {long_name(HealSettings, idle[0])} was given.",
            "Add --heal, or --fold NAME for a repair without training.",
        )
    return None
