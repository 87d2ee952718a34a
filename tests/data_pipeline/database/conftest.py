"""One small build for the tests of `retro database`, made once a process."""

import shutil

import made_up_encoder
import made_up_text
import pytest
from test_build import arguments

from launch import build


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("database")
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=24)
    assert build.main(arguments(root, root / "whole")) == 0
    return root


@pytest.fixture
def work(root, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(root / "whole", tmp_path / "run")
    return tmp_path / "run"
