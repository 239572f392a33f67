"""The process that serves weights is started again when it is killed, even while it starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lodestar_services.learner import publisher as module
from lodestar_services.learner.publisher import WeightPublisher

from lodestar.config import LearnerConfig, PpoConfig
from lodestar.config.serve import LearnerTask
from lodestar.errors import LodestarError


class Doomed(WeightPublisher):
    """Its first servers are killed before they answer."""

    kills = 0

    def _start(self, told: LearnerTask) -> subprocess.Popen[str]:
        server = super()._start(told)
        if self.kills:
            self.kills -= 1
            server.kill()
        return server


@pytest.fixture
def publisher(tmp_path: Path) -> Doomed:
    (tmp_path / "weights" / ".9f31c2aa-3.partial").mkdir(parents=True)
    section = LearnerConfig(weight_versions=2)
    made = Doomed(tmp_path / "weights", run="demo", incarnation="a", tokenizer_hash="t", section=section)
    assert not list((tmp_path / "weights").glob(".*.partial"))
    return made


def options(tmp_path: Path) -> LearnerTask:
    return LearnerTask(
        run="demo", folder=tmp_path, ppo=PpoConfig(), policy="p", reference="p", prompts=tmp_path / "prompts.jsonl",
        state=tmp_path / "state", figures=tmp_path / "figures", output=tmp_path / "policy",
    )  # fmt: skip


def test_a_server_killed_while_it_starts_is_started_again(publisher: Doomed, tmp_path: Path) -> None:
    publisher.kills = 2
    assert publisher.serve(options(tmp_path)) > 0
    assert publisher.server is not None
    assert publisher.server.poll() is None
    publisher.close()


def test_one_that_is_always_killed_is_said_so(
    publisher: Doomed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STARTS", 2)
    publisher.kills = 9
    with pytest.raises(LodestarError, match=r"did not start \(exit -9\)"):
        publisher.serve(options(tmp_path))
