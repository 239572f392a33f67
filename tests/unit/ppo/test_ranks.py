"""Two ranks do what one does: gradients and metrics of a step agree to 1e-6."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from pathlib import Path

import pytest
import torch
from lodestar_services.learner.figures import UpdateFigures

from tests.unit.ppo.test_trainer import CPU, gradients, rollouts, trainer


def _first_step(path: Path) -> None:
    one = trainer(batch=7, minibatches=1)
    figures = UpdateFigures(CPU)
    batch = one.prepare(rollouts(one.policy, n=7))
    one.forward_backward(batch, range(7), figures)
    one._ranks.total_gradients(list(one.policy.parameters()))
    one._ranks.total_gradients(list(one.critic.parameters()))
    found = {key: gradient.clone() for key, gradient in gradients(one).items()}
    one = trainer(batch=7)
    metrics = one.step(rollouts(one.policy, n=7))
    weights = {key: p.detach() for key, p in one.policy.named_parameters()}
    torch.save({"gradients": found, "metrics": metrics, "weights": weights}, path)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    _first_step(folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and each of two ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, folder)) for rank in range(2)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for process in ranks:
            process.start()
    for process in ranks:
        process.join(50)
        assert process.exitcode == 0
    _first_step(folder / "alone.pt")
    return folder


def test_two_ranks_compute_the_gradients_metrics_and_weights_of_one(folder: Path) -> None:
    alone, *both = (torch.load(folder / f"{name}.pt") for name in ("alone", "rank0", "rank1"))
    for found in both:
        for key, gradient in alone["gradients"].items():
            assert torch.allclose(found["gradients"][key], gradient, atol=1e-6), key
        assert found["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-5)
        for key, weight in alone["weights"].items():
            assert torch.allclose(found["weights"][key], weight, atol=1e-4), key
    assert all(torch.equal(both[0]["weights"][key], both[1]["weights"][key]) for key in both[0]["weights"])
