"""Choosing the sub-net that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from dynkern.nn.dynamic import DynamicModule
from dynkern.nn.selection import Key, Selection
from dynkern.subnets.spec import SubNet

# Where the root of a slim network keeps its selection, so that it is found without a search, and how it was made.
ROOT = "_dynkern"
MADE = "_dynkern_made"


class Made(NamedTuple):
    """The arguments of :func:`dynkern.slim` that made a network slim."""

    subnets: tuple[float | SubNet, ...]
    divisor: int


def select(net: nn.Module, key: Key) -> None:
    """Choose the sub-net that ``net`` runs from now on. Nothing is copied or allocated.

    Args:
        net: a network made by :func:`dynkern.slim`, or a module that contains one (which is then searched for).
        key: a width, or the name of a :class:`~dynkern.SubNet`.

    Raises:
        ValueError: ``net`` is not slim, contains several slim networks, or has no sub-net ``key``.
    """
    selection_of(net).select(key)


def using(net: nn.Module, key: Key) -> AbstractContextManager[None]:
    """Choose the sub-net for the block, in this thread (or asyncio task) alone: ``with using(net, 0.5): y = net(x)``.

    Other threads may run other sub-nets of ``net`` at the same time. Activation checkpointing repeats the forward pass
    in the backward pass, which then belongs into the block. Code from ``torch.compile`` has a graph break there.

    Args, Raises: as :func:`select`.
    """
    return selection_of(net).using(key)


def keys(net: nn.Module) -> tuple[Key, ...]:
    """The sub-nets of ``net``: widths, and names of :class:`~dynkern.SubNet`."""
    return selection_of(net).keys


def active(net: nn.Module) -> Key:
    """The sub-net that ``net`` runs now in this thread."""
    return selection_of(net).active()


def made(net: nn.Module) -> Made:
    """How ``net``, the very network that was made slim, came about: ``slim(plain, *made(net))`` does it again."""
    known = vars(net).get(MADE)
    if known is None:
        raise ValueError(f"net: expected a slim network (see dynkern.slim), got a {type(net).__name__}")
    return known


def selection_of(net: Any) -> Selection:
    """What the dynamic modules of ``net`` share; ``ValueError`` if ``net`` is not one slim network."""
    known = getattr(net, ROOT, None)
    if known is not None:
        return known
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a module, got {type(net).__name__}")
    found = list(dict.fromkeys(selections(net)))
    if not found:
        raise ValueError(f"net: expected a slim network (see dynkern.slim), got a plain {type(net).__name__}")
    if len(found) > 1:
        raise ValueError(f"net: expected one slim network, got {len(found)} of them in a {type(net).__name__}")
    return found[0]


def selections(net: nn.Module) -> Iterator[Selection]:
    """The selection of each dynamic module of ``net`` that has one."""
    for module in net.modules():
        if isinstance(module, DynamicModule) and module.selection is not None:
            yield module.selection
