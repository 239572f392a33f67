"""Makes example_run.py importable under importlib's import mode."""

import importlib.util
from pathlib import Path

import pytest

from lodestar.recipe.folder import RunFolder


def _written(how: str, root: Path) -> RunFolder:
    spec = importlib.util.spec_from_file_location("example_run", Path(__file__).with_name("example_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder: RunFolder = getattr(module, how)(root)
    return folder


@pytest.fixture
def example_run(tmp_path: Path) -> RunFolder:
    """A run's folder of made-up figures."""
    return _written("write_example_run", tmp_path / "example-data")


@pytest.fixture
def example_rounds(tmp_path: Path) -> RunFolder:
    """One of three rounds."""
    return _written("write_example_rounds", tmp_path / "example-rounds")
