"""How to reproduce what a report shows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from streamliner.report.read import Run
from streamliner.report.section import Section, Table


def reproduce_section(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> Section:
    """Commands, versions, hardware and hashes."""
    section = Section("How to reproduce it")
    of_runs = [run.files.get("run") or run.files.get("healing") or {} for run in runs]
    commands = [*_commands(of_runs), *_cuts(results), *_commands(results)]
    if commands:
        section.tables.append(Table([["command"], *([command] for command in dict.fromkeys(commands))]))
    sources = [*of_runs, *results]
    versions: dict[str, set[str]] = {}
    for source in sources:
        for name, version in source.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    if versions:
        told = (f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
        section.text.append(f"Versions: {', '.join(told)}.")
    machines = dict.fromkeys(_machine(source["hardware"]) for source in sources if source.get("hardware"))
    section.text += [f"Machine: {each}." for each in machines]
    for run in runs:
        calibration = run.files.get("run", {}).get("calibration")
        if calibration:
            section.text.append(
                f"Calibration set: {calibration['source']}, {calibration['windows']} windows of "
                f"{calibration['sequence_length']} tokens, seed {calibration['seed']}, "
                f"SHA-256 {calibration['sha256'][:16]}."
            )
    return section


def _commands(sources: Sequence[dict[str, Any]]) -> list[str]:
    return [shlex.join(source["command"]) for source in sources if source.get("command")]


def _cuts(results: Sequence[dict[str, Any]]) -> list[str]:
    """The commands of cuts, by the blocks, whatever plan these came from. Healings are in the runs of theirs."""
    cut = [model for result in results for model in result["models"] if model["removed"]]
    return [
        shlex.join(
            [
                "streamliner",
                "cut",
                model["parent"],
                "--blocks",
                ",".join(map(str, model["removed"])),
                "-o",
                model["model"],
            ]
        )
        for model in cut
        if not model["method"].endswith("healed")
    ]


def _machine(hardware: dict[str, Any]) -> str:
    processor = hardware.get("processor") or hardware["machine"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    return f"{processor}, {hardware['cpus']} cores, {hardware['threads']} threads, {gpus}"
