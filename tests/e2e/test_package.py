"""What is published: the source distribution holds the contract, manifests and texts; a wheel made from it submits."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
RUN = """
name: mine
model: {path: org/model}
given: {reward_model: org/reward, prompts: /lodestar/runs/prompts.jsonl}
stages: {ppo: {score: {offset: none}}}
"""


def built(tools: Path, source: Path, kind: str, out: Path) -> Path:
    """What setuptools makes of a source tree, without a network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(tools)}
    done = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.strip().splitlines()[-1]


def test_a_wheel_made_from_the_source_distribution_submits_a_run(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "--target", str(tools), "setuptools>=77"], check=True, capture_output=True)
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
    sdist = built(tools, tree, "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert {"proto/lodestar/v1/policy.proto", "k8s/base/kustomization.yaml", "docs/operations.md", "LICENSE"} <= names
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = built(tools, unpacked, "wheel", tmp_path)
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert "Classifier: Programming Language :: Python :: 3.12" in metadata.read_text()
    (tmp_path / "run.yaml").write_text(RUN)
    code = "from lodestar.cli import main; import lodestar, sys; print(lodestar.__file__, file=sys.stderr); main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "submit", "run.yaml", "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(installed))
    assert "kind: Job" in done.stdout
    assert "name: conductor-mine" in done.stdout
