"""How to reproduce what a report shows."""

import shlex
from itertools import pairwise

from streamliner.format import counted
from streamliner.report.read import Results
from streamliner.report.section import Section


def reproduce_section(results: Results) -> Section:
    """Commands, versions, hardware, and the hash of each calibration set."""
    section = Section("How to reproduce")
    runs = [run.files.get("run") or run.files.get("healing") or {} for run in results.runs]
    measured = [*results.evaluations, *results.benchmarks]
    ran, evaluated = ([each["command"] for each in sources if each.get("command")] for sources in (runs, measured))
    written = {after for command in ran for flag, after in pairwise(command) if flag in ("-o", "--output")}
    # Models that were cut and not healed can be cut by their blocks, whatever plan these came from.
    cuts = [
        ["streamliner", "cut", model["parent"], "--blocks", ",".join(map(str, model["removed"])), "-o", model["model"]]
        for result in measured
        for model in result["models"]
        if model["removed"] and not model["method"].endswith("healed") and model["model"] not in written
    ]
    commands = dict.fromkeys(map(shlex.join, [*ran, *cuts, *evaluated]))
    if commands:
        section.tables.append([["command"], *([command] for command in commands)])
    sources = [*runs, *measured]
    versions: dict[str, set[str]] = {}
    for name, version in (item for source in sources for item in source.get("versions", {}).items()):
        versions.setdefault(name, set()).add(version)
    listed = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    texts = [f"Versions: {listed}."] if listed else []
    texts += [
        f"Machine: {each.get('processor') or each['machine']}, {each['cpus']} cores, "
        f"{counted(each['threads'], 'thread')}, {', '.join(each['gpus']) or 'no GPU'}."
        for each in (source["hardware"] for source in sources if source.get("hardware"))
    ]
    texts += [
        f"Calibration set: {each['source']}, {counted(each['windows'], 'window')} of {each['sequence_length']} tokens, "
        f"seed {each['seed']}, SHA-256 {each['sha256'][:16]}."
        for each in (run["calibration"] for run in runs if run.get("calibration"))
    ]
    section.text += dict.fromkeys(texts)
    return section
