"""Flags of earlier releases: they still work, and a line says their names of today."""

import sys

RENAMED = {
    "evaluate": {"--window": "--sequence-length", "--max-windows": "--num-samples"},
    "heal": {"--batch-size": "--global-batch-size", "--lr": "--learning-rate", "--min-lr": "--min-learning-rate"},
}
"""Verb -> flag -> its name of today."""
HEAL_SETTINGS = {"batch_size": "global_batch_size", "lr": "learning_rate", "min_lr": "min_learning_rate"}


def renamed(arguments: list[str]) -> list[str]:
    """The command line with flags of earlier releases under their names of today."""
    names = RENAMED.get(next((each for each in arguments if not each.startswith("-")), ""), {})
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--heal-set":
            setting, _, value = (value if equals else next(rest, "")).partition("=")
            setting = setting.replace("-", "_")
            new = _heal_flags(HEAL_SETTINGS.get(setting, setting).replace("_", "-"), value)
        elif name in names:
            new = [names[name] + equals + value]
        else:
            result.append(argument)
            continue
        print(f"{name} is now {new[0].partition('=')[0]}.", file=sys.stderr)
        result += new
    return result


def _heal_flags(name: str, value: str) -> list[str]:
    if value.lower() in ("true", "false"):
        return [f"--{'' if value.lower() == 'true' else 'no-'}{name}"]
    return [f"--{name}", value]
