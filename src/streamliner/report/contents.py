"""What runs and results hold -> the sections of a report: results first, then the work in its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamliner.report.read import Run
from streamliner.report.section import Section
from streamliner.report.sections.evaluations import evaluation_section
from streamliner.report.sections.frontiers import frontier_section
from streamliner.report.sections.healings import healing_section
from streamliner.report.sections.reproduce import reproduce_section
from streamliner.report.sections.searches import search_section
from streamliner.report.sections.speeds import speed_section
from streamliner.report.sections.summary import summary_section


def make_sections(
    runs: Sequence[Run], evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]
) -> list[Section]:
    """All that there is to tell, the results in front."""
    searches = [run for run in runs if "search" in run.files.get("run", {})]
    summary, frontier = (
        summary_section(evaluations, benchmarks),
        frontier_section([run for run in searches if "frontier" in run.files], evaluations, benchmarks),
    )
    sections = [section for section in (summary, frontier) if section.tables or section.figures]
    sections += [search_section(run) for run in searches]
    sections += [healing_section(run) for run in runs if run.history]
    sections += [evaluation_section(value) for value in evaluations]
    sections += [speed_section(value) for value in benchmarks]
    sections.append(reproduce_section(runs, [*evaluations, *benchmarks]))
    return sections
