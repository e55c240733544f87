"""Batch norm statistics for sub-nets that were not trained themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.nn.batchnorm import BatchNorm, SwitchableBatchNorm
from dynkern.nn.dynamic import device_of
from dynkern.nn.selection import Key
from dynkern.subnets.switch import selection_of


def calibrate_bn(
    net: nn.Module, loader: Iterable[Any], subnets: Iterable[Key] | None = None, batches: int | None = None
) -> None:
    """Recompute the batch norm statistics of sub-nets (Yu & Huang, Universally Slimmable Networks, ICCV 2019, 3.4).

    The statistics become the plain average over the batches, every one of which runs once through every sub-net, with
    all else (dropout, say) in eval mode. Parameters, training flags and the selected sub-net stay what they were.

    Args:
        net: a network made by :func:`dynkern.slim`.
        loader: batches: the input, or a tuple or list whose first item it is. They are moved to the device of ``net``.
        subnets: which sub-nets. By default all but the whole network, which keeps the statistics it came with.
        batches: at most so many of the batches; all by default.

    Raises:
        ValueError, TypeError: ``net`` is not slim, a sub-net is not known, there is no batch, or a batch is of another
            kind. The statistics are then as they were.
    """
    selection = selection_of(net)
    switchable = [m for m in net.modules() if isinstance(m, SwitchableBatchNorm) and m.selection is selection]
    whole = {key for m in switchable for key in m.whole}
    wanted = [k for k in selection.keys if k not in whole] if subnets is None else [selection.check(k) for k in subnets]
    if subnets is not None and not wanted:
        raise ValueError("subnets: expected at least one sub-net, got none")
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise ValueError(f"batches: expected an integer of at least 1, got {batches!r}")
    inputs = (input_of(batch) for batch in islice(loader, batches))
    first = next(inputs, None)
    if first is None:
        raise ValueError("loader: expected at least one batch, got none")
    norms = [bn for m in switchable for key in wanted if (bn := m.member(key)).track_running_stats]
    device = device_of(net)
    with torch.no_grad(), _measuring(net, norms):
        for x in chain([first], inputs):
            x = x.to(device)
            for key in wanted:
                with selection.using(key):
                    net(x)
    for module in switchable:
        module.refresh()


def input_of(batch: Any) -> Tensor:
    """The input of a batch: the batch itself, or its first item."""
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor):
        raise TypeError(f"loader: expected tensors, or tuples whose first item is one, got {type(batch).__name__}")
    return x


@contextmanager
def _measuring(net: nn.Module, norms: list[BatchNorm]) -> Iterator[None]:
    """``norms`` average over the batches of the block, from nothing; ``net`` is in eval mode otherwise.

    Norms that saw no batch, and all of them after an error, get back what they had.
    """
    training = {m: m.training for m in net.modules()}
    before: list[tuple[BatchNorm, float | None, dict[str, Tensor]]] = [
        (bn, bn.momentum, {name: b.clone() for name, b in bn.named_buffers(recurse=False)}) for bn in norms
    ]
    done = False
    try:
        net.eval()
        for bn in norms:
            bn.reset_running_stats()
            bn.momentum = None
            bn.train()
        yield
        done = True
    finally:
        for bn, momentum, buffers in before:
            bn.momentum = momentum
            if not done or not bool(bn.num_batches_tracked):
                for name, buffer in bn.named_buffers(recurse=False):
                    buffer.copy_(buffers[name])
        for module, flag in training.items():
            module.training = flag
