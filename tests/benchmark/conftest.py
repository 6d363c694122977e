"""What the tests of benchmark share: a cut model in a folder."""

from __future__ import annotations

import pytest

from places import TINY
from streamliner.model.session import open_model
from streamliner.settings import CutSettings
from streamliner.verbs.cut import cut_to_folder


@pytest.fixture(scope="session")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "cut"
    cut_to_folder(open_model(TINY), (4, 5, 6), folder, CutSettings(quiet=True))
    return folder
