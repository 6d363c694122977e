"""A section of the report: on which blocks the searches agree."""

from collections import Counter

from streamliner.report.read import Results
from streamliner.report.section import Section


def agreement(results: Results) -> list[Section]:
    """How many of the plans remove each block; nothing if there is only one plan."""
    plans = [run.files["plan"] for run in results.searches if "plan" in run.files]
    if len(plans) < 2:
        return []
    counts = Counter(block for plan in plans for block in plan["removed"])
    rows = [["block", "plans that remove it"]]
    rows += [[str(block), f"{count} of {len(plans)}"] for block, count in counts.most_common()]
    return [Section("Where the searches agree", tables=[rows])]
