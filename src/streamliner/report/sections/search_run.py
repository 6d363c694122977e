"""A search: its frontier, every candidate by round, and the similarity of depths."""

from streamliner.format import duration, loss, perplexity_of
from streamliner.report.figures import Figure
from streamliner.report.heat_map import plot_matrix, plot_rounds
from streamliner.report.read import JsonObject, Run
from streamliner.report.section import Section
from streamliner.search.frontier import note_of


def search_section(run: Run) -> Section:
    """A search, finished or not."""
    section = Section(f"Search: {run.search_name}")
    if "frontier" not in run.files:
        section.text.append("Not finished. To continue from what was measured, run the command below again.")
        return section
    frontier, plan = run.files["frontier"], run.files.get("plan")
    removed = plan["removed"] if plan else []
    if plan:
        blocks = f"{len(removed)} of the {plan['num_blocks']} blocks of {plan['model']['name']}"
        section.text.append(f"The plan removes {blocks}: {', '.join(map(str, removed))}.")
    section.text += filter(None, [note_of(frontier["settings"]), frontier.get("ended")])
    kl = frontier.get("objective") == "kl"
    rows = [["removed", "blocks", "loss", "standard error", "perplexity", *["divergence"] * kl, "score"]]
    dense = {"removed": [], "loss": frontier["dense_loss"], "standard_error": None, "divergence": 0.0, "score": None}
    for point in (dense, *frontier["points"]):
        numbers = [loss(point["loss"]), loss(point["standard_error"]), perplexity_of(point["loss"])]
        numbers += [loss(point["divergence"])] if kl else []
        numbers.append("" if point["score"] is None else f"{point['score']:.4f}")
        rows.append([str(len(point["removed"])), ", ".join(map(str, point["removed"])), *numbers])
    section.tables.append(rows)
    section.text += [f"Score: {frontier['score']}."] if frontier.get("score") else []
    section.text += _cost(run)
    section.figures += _plot_candidates(frontier)
    if "similarity" in run.files:
        cosine = run.files["similarity"]["cosine"]
        caption = "Mean cosine similarity of the residual streams at two depths. Marks: removed blocks."
        section.figures.append(plot_matrix(cosine, removed, caption, f"A matrix of {len(cosine)} depths."))
    return section


def _cost(run: Run) -> list[str]:
    """What the search cost; nothing for runs of earlier releases."""
    cost = run.files.get("run", {}).get("cost")
    if not cost:
        return []
    work = f"{cost['forwards']:,} forwards and {cost['block_forwards']:,} block forwards"
    return [f"It cost {work} in {duration(cost['seconds'])}; if it was continued, since its last start."]


def _plot_candidates(frontier: JsonObject) -> list[Figure]:
    """The scores of all candidates, a row for each round; nothing if no method recorded any."""
    rounds, chosen, lowest = [], [], []
    for count, point in enumerate(frontier["points"], 1):
        scores = {int(block): score for block, score in (point["candidates"] or {}).items() if score is not None}
        if scores:
            rounds.append(scores)
            chosen.append(min(scores, key=scores.__getitem__))
            lowest.append(f"block {chosen[-1]} of {len(scores)} candidates ({count} removed)")
    if not rounds:
        return []
    caption = (
        "Score of each candidate: a row for each number of removed blocks, a column for each block, or first block of "
        "the interval. The lighter, the lower; the dot is the lowest."
    )
    return [plot_rounds(rounds, chosen, caption, f"Lowest: {', '.join(lowest)}.")]
