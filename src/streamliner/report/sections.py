"""What runs and results hold -> the sections of a report, in the order of the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from streamliner.report.evaluation import evaluation_section
from streamliner.report.files import Run
from streamliner.report.frontier import frontier_section
from streamliner.report.healing import healing_section
from streamliner.report.search import search_section
from streamliner.report.section import Section, Table
from streamliner.report.speed import speed_section


def make_sections(
    runs: Sequence[Run], evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]
) -> list[Section]:
    """All that there is to tell."""
    searches = [run for run in runs if "frontier" in run.files]
    frontier = frontier_section(searches, evaluations, benchmarks)
    sections = [search_section(run) for run in searches]
    sections += [frontier] if frontier.figures else []
    sections += [healing_section(run) for run in runs if run.history]
    sections += [evaluation_section(value) for value in evaluations]
    sections += [speed_section(value) for value in benchmarks]
    sections.append(_reproduce(runs, [*evaluations, *benchmarks]))
    return sections


def _reproduce(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> Section:
    """Commands, versions, hardware and hashes."""
    section = Section("How to reproduce it")
    sources = [run.files.get("run") or run.files.get("healing") or {} for run in runs] + list(results)
    rows = [["command"]]
    commands = [" ".join(["streamliner", *source["command"][1:]]) for source in sources if source.get("command")]
    rows += [[command] for command in dict.fromkeys(commands)]
    if len(rows) > 1:
        section.tables.append(Table(rows))
    versions = {name: version for source in sources for name, version in source.get("versions", {}).items()}
    if versions:
        section.text.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    hardware = {json.dumps(source["hardware"], sort_keys=True) for source in sources if source.get("hardware")}
    section.text += [f"Hardware: {each}" for each in sorted(hardware)]
    for run in runs:
        calibration = run.files.get("run", {}).get("calibration")
        if calibration:
            section.text.append(
                f"Calibration set: {calibration['source']}, {calibration['windows']} windows of "
                f"{calibration['sequence_length']} tokens, seed {calibration['seed']}, "
                f"SHA-256 {calibration['sha256'][:16]}."
            )
    return section
