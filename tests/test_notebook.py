"""The example notebook runs from its first cell to its last."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient

from places import ROOT, TINY


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", str(TINY))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 3
    assert (tmp_path / "healed" / "model.safetensors").exists()
