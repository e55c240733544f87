"""Checkpoints of slimmable and universally slimmable networks, as their authors' code saves them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from dynkern.checkpoint import fill, read_state
from dynkern.nn.batchnorm import SwitchableBatchNorm
from dynkern.subnets.switch import selection_of

Net = TypeVar("Net", bound=nn.Module)

# Of a block there: the convolutions and batch norms of `body`, and those of `shortcut`.
_BLOCK = {
    "body.0": "conv1", "body.1": "bn1", "body.3": "conv2", "body.4": "bn2", "body.6": "conv3", "body.7": "bn3",
    "shortcut.0": "downsample.0", "shortcut.1": "downsample.1",
}  # fmt: skip
_ENDS = {"features.0.0": "conv1", "features.0.1": "bn1", "classifier.0": "fc"}
_OWN = re.compile(r"(.*)\.bn\.(\d+)\.(\w+)$")  # of one width


def load_slimmable(net: Net, path: str | os.PathLike[str], prefix: str = "module.") -> Net:
    """Load a checkpoint of JiahuiYu/slimmable_networks into a slim network (``s_resnet``, ``us_resnet``).

    Slimmable networks have a whole batch norm per width (``bn.N.weight``, ``bn.N.running_mean``, ...); universally
    slimmable ones share scale and shift (``weight``, ``bias``) and have statistics per width (``bn.N.running_mean``),
    which here become batch norms per width with copies of the shared numbers. Which N is which width is found from the
    number of channels. Names of their ResNets (``features.3.body.0``) and of :func:`dynkern.models.resnet50` are both
    understood.

    Args:
        net: made by :func:`dynkern.slim` of the same architecture, with the widths of the checkpoint (or some of them;
            ``divisor=8`` for universally slimmable ones). It is changed only if all fits.
        path: written by ``torch.save``; read with ``weights_only=True``.
        prefix: taken off the front of names that have it.

    Returns:
        ``net``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such checkpoint, or does not fit ``net``; the message lists what.
    """
    selection_of(net)
    path = Path(path)
    state = read_state(path, prefix)
    if "features.0.0.weight" in state and not hasattr(net, "features"):
        state = _renamed(state, net, path)
    state = _shared_made_private(state)
    order = _order(state, net, path)
    chosen: dict[str, Tensor] = {}
    for name, value in state.items():
        own = _OWN.match(name)
        if own is None:
            chosen[name] = value
        elif int(own[2]) in order:
            chosen[f"{own[1]}.bn.{order[int(own[2])]}.{own[3]}"] = value
    return fill(net, {**_kept(net), **chosen}, path)


def _renamed(state: dict[str, Tensor], net: nn.Module, path: Path) -> dict[str, Tensor]:
    """Names of ``models.resnet50`` for those of ``s_resnet``, whose blocks are numbered through all stages."""
    blocks = list(_blocks(net))
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.match(r"features\.(\d+)\.((?:body|shortcut)\.\d+)\.(.*)$", name)
        end = next((old for old in _ENDS if name.startswith(old + ".")), None)
        if block is not None and 0 < int(block[1]) <= len(blocks) and block[2] in _BLOCK:
            found[f"{blocks[int(block[1]) - 1]}.{_BLOCK[block[2]]}.{block[3]}"] = value
        elif end is not None:
            found[_ENDS[end] + name.removeprefix(end)] = value
        else:
            raise ValueError(f"{path}: does not fit {type(net).__name__}; it has {name!r}")
    return found


def _blocks(net: nn.Module) -> Iterator[str]:
    for name, stage in net.named_children():
        if re.fullmatch(r"layer\d+", name):
            yield from (f"{name}.{i}" for i, _ in stage.named_children())


def _shared_made_private(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scale and shift that all widths share, cut to each width."""
    found = dict(state)
    for name, mean in state.items():
        own = _OWN.match(name)
        if own is None or own[3] != "running_mean" or f"{own[1]}.bn.{own[2]}.weight" in state:
            continue
        for part in ("weight", "bias"):
            shared = state.get(f"{own[1]}.{part}")
            if shared is not None:
                found[f"{own[1]}.bn.{own[2]}.{part}"] = shared[: len(mean)].clone()
                found.pop(f"{own[1]}.{part}", None)
    return found


def _order(state: dict[str, Tensor], net: nn.Module, path: Path) -> dict[int, int]:
    """For each N of the file that ``net`` has a sub-net for, the position of that one."""
    norms = {name: m for name, m in net.named_modules() if isinstance(m, SwitchableBatchNorm)}
    numbers = sorted({int(own[2]) for own in map(_OWN.match, state) if own is not None})
    if not numbers:
        raise ValueError(f"{path}: expected statistics for each width under bn.0, bn.1, ..., found none")
    sizes = {n: [len(state.get(f"{name}.bn.{n}.running_mean", ())) for name in norms] for n in numbers}
    order: dict[int, int] = {}
    for place, key in enumerate(selection_of(net).keys):
        wanted = [norm.member(key).num_features for norm in norms.values()]
        fits = [n for n in numbers if sizes[n] == wanted]
        if not fits:
            have = ", ".join(f"bn.{n}: {s[:3]}" for n, s in sizes.items())
            raise ValueError(
                f"{path}: no width has the channels of sub-net {key!r} ({wanted[:3]}, ...), only {have}, ..."
            )
        order[fits[0]] = place
    return order


def _kept(net: nn.Module) -> dict[str, Tensor]:
    """What only ``net`` has: the unused batch norms of a slim network none of whose sub-nets is the whole one."""
    return {name: value for name, value in net.state_dict().items() if ".full." in f".{name}"}
