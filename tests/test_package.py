"""What a wheel and a source distribution hold, read from `pyproject.toml`; `make package` builds and installs them."""

from __future__ import annotations

import tomllib
from importlib.metadata import version

import yaml

import streamliner as sl
from command import run
from places import ROOT

PACKAGE = ROOT / "src" / "streamliner"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def test_the_wheel_has_every_file_of_the_package():
    """setuptools takes Python files of folders with an `__init__.py`, and from others what package-data names."""
    named = {
        file
        for pattern in PROJECT["tool"]["setuptools"]["package-data"]["streamliner"]
        for file in PACKAGE.glob(pattern)
    }
    assert {file for file in FILES if file.suffix != ".py"} == named
    assert all((file.parent / "__init__.py").exists() for file in FILES if file.suffix == ".py")
    assert PACKAGE / "py.typed" in named


def test_the_version_is_that_of_the_installation(capsys):
    out, _ = run(capsys, "--version")
    assert out.strip() == sl.__version__ == version("streamliner")


def test_the_citation_names_the_papers():
    """A broken file is not shown by those who read it, without a word."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
    papers = {each["identifiers"][0]["value"]: each for each in citation["references"]}
    assert set(papers) == {"arXiv:2402.09025", "arXiv:2403.19135"}
    assert all(each["authors"] and each["title"] and each["type"] for each in papers.values())
