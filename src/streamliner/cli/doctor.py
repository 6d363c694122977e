"""`streamliner doctor`."""

from typing import Any

from streamliner.cli.command import Given, command
from streamliner.cli.console import print_line, print_tables
from streamliner.format import Table, human_bytes
from streamliner.settings import InspectSettings


@command(examples=("doctor", "doctor --json"), Doctor=InspectSettings)
def doctor(given: Given) -> None:
    """Show versions, devices, extras and disks, and which number of threads and which precision are fast here."""
    from streamliner.verbs.doctor import doctor as examine

    found = examine()
    given.show(found, "\n".join(found["problems"]) or None, lambda: print_examination(found))


def print_examination(found: dict[str, Any]) -> None:
    """Tables of what there is, then what to do."""
    print_line(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    machine = found["machine"]
    print_line(", ".join(filter(None, [machine["processor"], f"{machine['cpus']} processors", *machine["gpus"]])))
    memory = [[each["device"], _bytes(each["free_bytes"]), _bytes(each["total_bytes"])] for each in found["devices"]]
    disks = [[each["use"], each["path"], human_bytes(each["free_bytes"])] for each in found["disks"]]
    extras = [
        [each["name"], each["gives"], "installed" if each["installed"] else "not installed"] for each in found["extras"]
    ]
    tables = [
        Table([["device", "free memory", "memory"], *memory]),
        Table([["extra", "gives", "state"], *extras]),
        Table([["folder", "path", "free"], *disks]),
    ]
    print_tables(table for table in tables if len(table.rows) > 1)
    for each in found["extras"]:
        if not each["installed"]:  # not in the table, which would break a long command at its edge
            print_line(f"For {each['name']}: {each['command']}")
    for each in found["plugins"]:
        print_line(f"Plug-in: {each['kind']} {each['name']} of {each['package']}")
    threads, rates = found["threads"], found["threads"]["rates"]
    shown = ", ".join(f"{number}: {rate / rates[1]:.2f}" for number, rate in rates.items())
    print_line(f"Threads: torch uses {threads['used']}; best now: {threads['best']}. Speed by threads: {shown}")
    for each in found["precisions"]:
        seconds = each["seconds"]
        shown = ", ".join(f"{name} {seconds['float32'] / value:.2f}" for name, value in seconds.items())
        print_line(f"Precision on {each['device']}: fastest is {each['fastest']}. Speed: {shown}")
    for line in found["advice"]:
        print_line(line)
    for line in found["problems"]:
        print_line(f"Problem: {line}")
    if not found["problems"]:
        print_line("No problems found.")


def _bytes(count: int | None) -> str:
    return "not known" if count is None else human_bytes(count)
