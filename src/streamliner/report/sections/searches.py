"""A search: the points it found, every candidate by round, and the similarity of depths."""

from __future__ import annotations

from pathlib import Path

from streamliner.format import loss, perplexity_of
from streamliner.report.figures import Series, matrix, plot
from streamliner.report.read import Run
from streamliner.report.section import Section, Table


def search_name(method: str, run: Run) -> str:
    """A method and the folder of its run, if that is named otherwise."""
    folder = Path(run.name).name
    return method if folder == method else f"{method} ({folder})"


def search_section(run: Run) -> Section:
    """The points, the candidates of each round, and the similarity where a method measured it."""
    if "frontier" not in run.files:
        text = "Not finished: the command below goes on from what was measured."
        return Section(f"Search: {search_name(run.files['run']['search']['method'], run)}", text=[text])
    frontier, plan = run.files["frontier"], run.files.get("plan")
    removed = plan["removed"] if plan else []
    section = Section(f"Search: {search_name(frontier['method'], run)}")
    if plan:
        section.text.append(
            f"Of {plan['num_blocks']} blocks of {plan['model']['name']} the plan removes {len(removed)}: "
            f"{', '.join(map(str, removed))}."
        )
    rows = [["removed", "blocks", "loss", "standard error", "perplexity"]]
    rows.append(["0", "", loss(frontier["dense_loss"]), "", perplexity_of(frontier["dense_loss"])])
    for point in frontier["points"]:
        blocks = ", ".join(map(str, point["removed"]))
        error = loss(point["standard_error"])
        rows.append([str(len(point["removed"])), blocks, loss(point["loss"]), error, perplexity_of(point["loss"])])
    section.tables.append(Table(rows))
    candidates = [
        {block: value for block, value in (point["candidates"] or {}).items() if value is not None}  # null: not finite
        for point in frontier["points"]
    ]
    rounds = [
        Series(f"{number} removed", sorted((int(block), value) for block, value in each.items()), line=False)
        for number, each in enumerate(candidates, 1)
        if each
    ]
    if rounds:
        best = "; ".join(
            f"{number} removed: block {min(each, key=lambda block: each[block])} of {len(each)} candidates"
            for number, each in enumerate(candidates, 1)
            if each
        )
        section.figures.append(
            plot(
                rounds,
                "block, or first block of the interval",
                "score",
                f"Score of every candidate by round. Least: {best}.",
                "The search: score of each candidate, by the number of blocks removed with it. Lower goes first.",
                log=all(value > 0 for each in candidates for value in each.values()),
            )
        )
    if "similarity" in run.files:
        cosine = run.files["similarity"]["cosine"]
        section.figures.append(
            matrix(
                cosine,
                removed,
                f"Mean cosine between streams at all pairs of {len(cosine)} depths; removed blocks are marked.",
                "Cosine between the streams at two depths; strokes mark removed blocks.",
            )
        )
    return section
