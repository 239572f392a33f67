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
from torch.distributed.tensor import DTensor

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
        """This rank's part of ``indexes``."""
        return list(indexes[self.rank :: self.world])

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
                if not isinstance(parameter, DTensor):
                    dist.broadcast(parameter.detach(), src=0)

    def total_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum replicated gradients over ranks; sharded ones were averaged by FSDP's reduce-scatter."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif isinstance(parameter, DTensor):
                parameter.grad.mul_(self.world)
        if self.world == 1:
            return
        replicated = [p.grad for p in parameters if not isinstance(p, DTensor) and p.grad is not None]
        if not replicated:
            return
        flat = self.total(torch.cat([gradient.reshape(-1) for gradient in replicated]))
        start = 0
        for gradient in replicated:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """L2 norm of the whole gradient, the same on every rank, in float32."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        squares = _squared_norm(whole, like=gradients[0])
        if len(whole) < len(gradients):
            local = [g.to_local() for g in gradients if isinstance(g, DTensor)]
            squares = squares + self.total(_squared_norm(local, like=local[0]))
        return squares.sqrt()


def shard(model: nn.Module, trunk: nn.Module, layers: Iterable[nn.Module]) -> None:
    """FSDP2 for a model that one device cannot hold: parameters of the layers are sharded, the rest is replicated.

    Embedding, final norm and head stay whole because log-probs read the head's weight outside of a forward call, and
    tied embeddings are the same tensor. Call it before the Trainer takes the model over. Ranks meet in every forward
    call, so they must make equally many: the ranks divide each minibatch, and a rank's share fits one micro-batch.
    """
    from torch.distributed.fsdp import fully_shard

    layers = list(layers)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        fully_shard(layer)
    fully_shard(trunk, ignored_params={p for p in model.parameters() if id(p) not in inside})


def _squared_norm(gradients: Sequence[Tensor], *, like: Tensor) -> Tensor:
    if not gradients:
        return torch.zeros((), device=like.device)
    norms = torch._foreach_norm(list(gradients), 2)
    return torch.stack([norm.float() for norm in norms]).square().sum()
