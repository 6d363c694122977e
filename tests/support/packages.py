"""Packages as pip installs them, without pip: modules and a dist-info folder."""

from __future__ import annotations

import tomllib

from places import ROOT

EXAMPLES = ROOT / "examples" / "plugins"


def install(folder, monkeypatch, name, entry_points, modules=()):
    """Put a package into `folder` and that on the path. `entry_points`: kind in plural -> name -> "module:object"."""
    folder.mkdir(exist_ok=True)
    for module, source in dict(modules).items():
        (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder)


def install_examples(folder, monkeypatch):
    """Install `examples/plugins` by its own pyproject.toml."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())
    folder.mkdir(exist_ok=True)
    for package, source in project["tool"]["setuptools"]["package-dir"].items():
        (folder / package).symlink_to(EXAMPLES / source)
    install(folder, monkeypatch, project["project"]["name"], project["project"]["entry-points"])
