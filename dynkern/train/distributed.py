"""Training in several processes: the same result as one process with the joint batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dynkern.nn.dynamic import device_of


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is that of the sum of all their losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class JointBatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` over the batches of all processes, of equal size, on any device.

    (:class:`torch.nn.SyncBatchNorm` is for GPUs alone.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        processes = dist.get_world_size()
        mean = _AllReduce.apply(wide.mean((0, 2, 3))) / processes
        var = _AllReduce.apply((wide - mean.view(-1, 1, 1)).square().mean((0, 2, 3))) / processes
        if self.running_mean is not None and self.running_var is not None:
            count = x.numel() // x.shape[1] * processes
            self._track(self.running_mean, mean.detach())
            self._track(self.running_var, var.detach() * count / max(count - 1, 1))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        y = (wide - mean.view(-1, 1, 1)) * (var.view(-1, 1, 1) + self.eps).rsqrt()
        if self.weight is not None:
            y = y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return y.to(x.dtype)

    def _track(self, known: Tensor, now: Tensor) -> None:
        share = 1 / (int(self.num_batches_tracked or 0) + 1) if self.momentum is None else self.momentum
        known.lerp_(now.to(known), share)


def start() -> tuple[int, int]:
    """Join the processes that ``torchrun`` started, over NCCL if there are GPUs and Gloo if not.

    Returns:
        The number of this process and how many there are; (0, 1) outside of ``torchrun``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def parallel(net: nn.Module, processes: int) -> Iterator[nn.Module]:
    """Give ``net`` as it is to be called while it is trained; gradients are averaged over ``processes`` of them.

    Several forward and backward passes may come before a step: as many as there are sub-nets, say.
    """
    if processes == 1:
        yield net
        return
    join_batch_norms(net)
    try:
        device = device_of(net)
        ids = [device] if device is not None and device.type == "cuda" else None
        # A sub-net leaves the others' batch norms unused.
        yield DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)
    finally:
        separate_batch_norms(net)


def summed(numbers: Sequence[float], processes: int, device: torch.device) -> list[float]:
    """Each of ``numbers`` added up over all processes."""
    if processes == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def wait(processes: int) -> None:
    """Wait until all processes are here."""
    if processes > 1:
        dist.barrier()


def join_batch_norms(net: nn.Module) -> nn.Module:
    """Let every ``BatchNorm2d`` of ``net`` take its statistics over all processes, those of sub-nets too; in place."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d
    return net


def separate_batch_norms(net: nn.Module) -> nn.Module:
    """Undo :func:`join_batch_norms`, in place."""
    for module in net.modules():
        if type(module) is JointBatchNorm2d:
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return net
