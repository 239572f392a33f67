"""Makes example_run.py importable under importlib's import mode."""

import importlib.util
from pathlib import Path

import pytest

from lodestar.recipe.folder import RunFolder


@pytest.fixture
def example_run(tmp_path: Path) -> RunFolder:
    """A run's folder of made-up figures."""
    spec = importlib.util.spec_from_file_location("example_run", Path(__file__).with_name("example_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder: RunFolder = module.write_example_run(tmp_path / "example-data")
    return folder
