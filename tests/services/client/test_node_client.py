"""A stranger's client: Node.js with the .proto files, against running services."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lodestar.client import ReferenceClient, RewardClient
from lodestar.records import Scored, ScoreItem

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "clients" / "node"

Installing = tuple[subprocess.Popen[str], Path]

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="node and npm are not installed"
)


@pytest.fixture(scope="module")
def installing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installing]:
    """npm fetches the example's two packages into a folder of its own while the services start."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "index.mjs"):
        shutil.copy(EXAMPLE / name, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as npm:
        yield npm, folder
        npm.kill()


@pytest.fixture(scope="module")
def services(
    installing: Any, start_service: Any, tiny_models: Any, reward_service: Any, reference_service: Any
) -> Iterator[dict[str, str]]:
    """The addresses of three servers by role."""
    policy = start_service("policy", model=str(tiny_models.sft))
    yield {"policy": policy.address, "reward": reward_service.address, "reference": reference_service.address}
    policy.child.stop(10)


@pytest.fixture(scope="module")
def example(services: Any, installing: Installing) -> Path:
    """The installed example."""
    npm, folder = installing
    try:
        _, complaint = npm.communicate(timeout=50)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install did not end within 50 s")
    if npm.returncode:
        pytest.skip(f"npm install failed: {complaint.strip()[-300:]}")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["node", "index.mjs", "--proto", str(ROOT / "proto"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50)


@pytest.mark.timeout(120)
def test_node_generates_scores_and_takes_logprobs(example: Path, services: dict[str, str]) -> None:
    addresses = [part for role, address in services.items() for part in (f"--{role}", address)]
    done = run(example, *addresses, "--prompt", "what color is the sky ?", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    completion, reference = result["completion"], result["reference"]
    tokens = len(completion["token_ids"])
    assert 1 <= tokens <= 12
    assert done.stderr.strip() == completion["text"].strip()
    assert len(completion["logprobs"]) == len(reference["logprobs"]) == len(reference["entropy"]) == tokens
    # Policy and reference serve the same weights here.
    assert reference["logprobs"] == pytest.approx(completion["logprobs"], abs=1e-4)
    cut_off = completion["finish_reason"] == "FINISH_REASON_LENGTH"
    with RewardClient(services["reward"]) as client:
        again = client.score([ScoreItem(result["prompt"], completion["text"], cut_off=cut_off)])
    assert result["score"] == again.scores[0].score
    with ReferenceClient(services["reference"]) as client:
        ids = (*result["prompt_token_ids"], *completion["token_ids"])
        again = client.logprobs([Scored(ids, len(result["prompt_token_ids"]))])
    assert reference["logprobs"] == pytest.approx(again.sequences[0].logprobs, abs=1e-6)


def test_node_is_told_what_is_wrong(example: Path, services: dict[str, str]) -> None:
    done = run(example, "--policy", services["policy"], "--max-tokens", "9999")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("INVALID_ARGUMENT: sampling.max_tokens:")
