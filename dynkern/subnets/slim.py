"""Making a network slimmable, and undoing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.nn.batchnorm import SwitchableBatchNorm, SwitchableBatchNorm1d, SwitchableBatchNorm2d
from dynkern.nn.dynamic import SlicedModule, become, device_of
from dynkern.nn.selection import Key, Selection, Slice
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.nn.transplant import replace
from dynkern.subnets.choice import Active, choose
from dynkern.subnets.flow import Flow
from dynkern.subnets.layout import Segment
from dynkern.subnets.spec import Channels, SubNet, check_divisor, parse
from dynkern.subnets.switch import MADE, ROOT, Made, selection_of, selections
from dynkern.subnets.walk import flow_of

_SLICED: dict[type, type[SlicedModule]] = {nn.Conv2d: SlicedConv2d, nn.Linear: SlicedLinear}
_SWITCHABLE: dict[type, type[SwitchableBatchNorm]] = {
    nn.BatchNorm1d: SwitchableBatchNorm1d,
    nn.BatchNorm2d: SwitchableBatchNorm2d,
}


def slim(model: nn.Module, subnets: Iterable[float | SubNet] = (0.25, 0.5, 0.75, 1.0), divisor: int = 1) -> nn.Module:
    """Make ``model`` run at several widths on one set of weights (Yu et al., ICLR 2019; Yang & Fan, ASP-DAC 2021).

    Works in place. Convolutions and linear layers stay the same objects with the same parameters, so that optimisers
    and checkpoints keep working; they read only the active channels. Each batch norm becomes one per sub-net: that of
    the whole network is the original, those of the others start with a slice of its affine parameters (which an
    optimiser made before does not know) and without statistics: train them, or run :func:`dynkern.calibrate_bn`.

    Which channels go together is found by ``torch.fx`` without an example input: those that are added or multiplied
    are sliced alike, a concatenation gives the next layer an index set. The channels of the input, and those that reach
    the output or meet what is never sliced, all run in every sub-net.

    Args:
        model: built of ``Conv2d``, ``Linear``, ``BatchNorm1d/2d``, :class:`dynkern.nn.ChannelPad` and what keeps
            channels apart (activations, pooling, dropout, flatten, interpolation, ...).
        subnets: widths in (0, 1], for ``width * C`` of the C channels of every layer (rounded half up), and
            :class:`SubNet` objects. A float or a ``SubNet``'s name is what :func:`dynkern.select` takes.
        divisor: uniform widths keep a multiple of it.

    Returns:
        ``model``, with the whole network selected, or else the last of ``subnets``.

    Raises:
        ValueError, TypeError: ``subnets`` or ``divisor`` is out of range, ``model`` is slim already, has nothing to
            slice, cannot be traced, or has something that cannot be sliced consistently, which is named. ``model`` is
            then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    specs = parse(subnets)
    check_divisor(divisor)
    if any(True for _ in selections(model)):
        raise ValueError("model: expected a plain network, got one that is slim already (see dynkern.revert)")
    flow = flow_of(model)
    chosen = {key: choose(flow, spec, divisor) for key, spec in specs.items()}
    whole = [key for key, active in chosen.items() if active.whole]
    selection = Selection(tuple(specs), whole[-1] if whole else None)
    slices = {name: _slices(model.get_submodule(name), name, flow, chosen) for name in flow.layers}
    norms = {
        model.get_submodule(name): _batch_norm(model, name, ports.inputs, chosen, selection, whole)
        for name, ports in flow.norms.items()
    }
    # Nothing above changed the model, and nothing below can fail.
    for name in flow.layers:
        layer = model.get_submodule(name)
        sliced = layer if isinstance(layer, SlicedModule) else become(layer, _SLICED[type(layer)])
        sliced.bind(selection, slices[name])
    replace(model, norms)
    setattr(model, ROOT, selection)
    setattr(model, MADE, Made(tuple(specs.values()), divisor))
    return model


def _slices(layer: nn.Module, name: str, flow: Flow, chosen: Mapping[Key, Active]) -> dict[Key, Slice]:
    device = device_of(layer)
    ports = flow.layers[name]
    slices = {}
    for key, active in chosen.items():
        inputs, in_index = _counted(active.entries(ports.inputs), device)
        outputs, out_index = _counted(active.entries(ports.outputs), device)
        slices[key] = Slice(inputs, outputs, in_index, out_index)
    return slices


def _counted(entries: Channels, device: torch.device | None) -> tuple[int, Tensor | None]:
    if isinstance(entries, int):
        return entries, None
    return len(entries), torch.tensor(entries, device=device)


def _batch_norm(
    model: nn.Module,
    name: str,
    segments: tuple[Segment, ...],
    chosen: Mapping[Key, Active],
    selection: Selection,
    whole: Iterable[Key],
) -> SwitchableBatchNorm:
    source: Any = model.get_submodule(name)
    if source._forward_hooks or source._forward_pre_hooks:
        raise ValueError(
            f"cannot slice module {name!r} ({type(source).__name__}): its forward hooks would run only in the whole "
            "network; remove them, and add them to the new module"
        )
    for other, module in model.named_modules():
        if module is not source and {*map(id, module._parameters.values())} & {*map(id, source.parameters())}:
            raise ValueError(
                f"cannot slice module {name!r} ({type(source).__name__}): it shares a parameter with {other!r}, but "
                "would have one of its own in every sub-net"
            )
    channels: dict[Key, Tensor | slice] = {}
    for key, active in chosen.items():
        count, index = _counted(active.entries(segments), device_of(source))
        channels[key] = slice(0, count) if index is None else index
    return _SWITCHABLE[type(source)].around(source, channels, selection, whole)


def revert(net: nn.Module) -> nn.Module:
    """Undo :func:`dynkern.slim`, in place: the plain modules again, with the parameters as they are now.

    Batch norms become those of the whole network, as training left them; the other sub-nets' are dropped. A layer that
    was made ternary meanwhile stays ternary.

    Returns:
        ``net``.

    Raises:
        ValueError: ``net`` is not a slim network, or only a part of one.
    """
    selection = selection_of(net)
    roots = [m for m in net.modules() if ROOT in vars(m)]
    if not roots:
        raise ValueError(f"net: expected the network that was made slim, got a {type(net).__name__} in it")
    norms: dict[nn.Module, nn.Module] = {}
    for module in list(net.modules()):
        if isinstance(module, SwitchableBatchNorm) and module.selection is selection:
            if module.original is not None:
                norms[module] = module.original
        elif isinstance(module, SlicedModule) and module.selection is selection:
            module.unbind()
    replace(net, norms)
    for root in roots:
        delattr(root, ROOT)
        delattr(root, MADE)
    return net
