"""The processes that share one learner's work: one process is the case of size 1, where nothing is sent.

Every rank holds the whole batch's numbers per token and computes forward and backward passes of its share of the
sequences only. Losses are divided by global token counts, so gradients and metrics of the ranks add up.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = datetime.timedelta(days=30)
"""Of those who wait to be told something: a step's rollouts may be hours away, where NCCL gives up after minutes."""


def join() -> None:
    """Joins the processes that torchrun started with this one, on the calling thread; does nothing for one alone.

    GPUs are taken in the order of the local ranks.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":  # schedulers set WORLD_SIZE too
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")


class Orders:
    """What the first rank tells the others, over the CPU; nobody is there to hear it in a learner of one process."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if several else None

    def give(self, order: Any) -> None:
        """The first rank's part."""
        if self._group is not None:
            dist.broadcast_object_list([order], src=0, group=self._group)

    def take(self) -> Any:
        """The others' part: waits for the next one."""
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


class Ranks:
    """The default process group, or a single process where there is none."""

    def __init__(self) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.world = dist.get_world_size() if distributed else 1

    def share(self, indexes: Sequence[int]) -> list[int]:
        """This rank's part of ``indexes``: neighbours, which may share a prompt."""
        return list(indexes[len(indexes) * self.rank // self.world : len(indexes) * (self.rank + 1) // self.world])

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def copy_from_first(self, parameters: Iterable[Tensor]) -> None:
        """Give every rank the weights of rank 0."""
        if self.world > 1:
            for parameter in parameters:
                dist.broadcast(parameter.detach(), src=0)

    def total_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over ranks."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """L2 norm of the whole gradient, the same on every rank, in float32."""
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None], 2)
        return torch.stack([norm.float() for norm in norms]).square().sum().sqrt()
