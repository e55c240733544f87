"""How many images a network gets right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynkern.data.cifar import normalize
from dynkern.data.images import Images
from dynkern.nn.dynamic import device_of
from dynkern.nn.selection import Key
from dynkern.subnets.switch import keys, using

# Images per call.
CHUNK = 250


def accuracy(call: Callable[[Tensor], Tensor], data: Images, *, device: torch.device | None = None) -> float:
    """The share, 0 to 1, of ``data`` that ``call`` gives the largest logit to the right class of.

    Args:
        call: takes normalised images (N, 3, H, W) float32 and returns logits; a network in eval mode, or an engine.
        data: the images.
        device: where ``call`` wants its images; the CPU by default.
    """
    found = 0
    with torch.no_grad():
        for x, y in zip(data.images.split(CHUNK), data.labels.split(CHUNK), strict=True):
            logits = call(normalize(x if device is None else x.to(device)))
            found += int((logits.argmax(1).cpu() == y).sum())
    return found / len(data)


def accuracies(net: nn.Module, data: Images, subnets: Iterable[Key] | None = None) -> dict[Key, float]:
    """The accuracy of each sub-net of a slim network, in eval mode; the training flag stays what it was.

    Args:
        net: made by :func:`dynkern.slim`.
        data: the images.
        subnets: which sub-nets; all by default.
    """
    found: dict[Key, float] = {}
    with evaluating(net):
        for key in keys(net) if subnets is None else subnets:
            with using(net, key):
                found[key] = accuracy(net, data, device=device_of(net))
    return found


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """``net`` is in eval mode inside the block, and all its modules as they were afterwards."""
    flags = {m: m.training for m in net.modules()}
    try:
        yield net.eval()
    finally:
        for module, flag in flags.items():
            module.training = flag
