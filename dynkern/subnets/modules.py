"""How channels pass through each kind of module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from dynkern.nn.channel_pad import ChannelPad
from dynkern.nn.dynamic import SlicedModule
from dynkern.subnets import axes
from dynkern.subnets.flow import Flow
from dynkern.subnets.layout import UNTRACKED, Layout, Segment, Untracked, Value

Rule = Callable[[Flow, str, Any, str, Layout | Untracked], Value]

_INPUT = "its channels come from the network's input, or from what is never sliced"


def conv2d(flow: Flow, name: str, module: Any, where: str, x: Layout | Untracked) -> Value:
    """Takes channels and makes others; a depthwise convolution passes its channels on."""
    inputs = _inputs(flow, module.in_channels, where, x, axis=-3)
    if module.groups == 1:
        made = outputs(flow, name, module.out_channels)
    elif module.groups == module.in_channels == module.out_channels:
        made = inputs
    else:
        flow.refuse(inputs, f"{where}: a grouped convolution that is not depthwise")
        return Layout(flow.fixed(module.out_channels, "a grouped convolution makes its channels"), -3, 4)
    return Layout(flow.record(flow.layers, name, where, inputs, made), -3, 4)


def linear(flow: Flow, name: str, module: Any, where: str, x: Layout | Untracked) -> Value:
    """Takes the channels of the last axis and makes others."""
    inputs = _inputs(flow, module.in_features, where, x, axis=-1)
    made = flow.record(flow.layers, name, where, inputs, outputs(flow, name, module.out_features))
    return Layout(made, -1, x.rank if isinstance(x, Layout) else None, 1)


def channel_pad(flow: Flow, name: str, module: ChannelPad, where: str, x: Layout | Untracked) -> Value:
    """Takes channels and makes others, whose number may be set freely."""
    inputs = _inputs(flow, module.in_channels, where, x, axis=None)
    made = flow.record(flow.layers, name, where, inputs, outputs(flow, name, module.out_channels))
    return replace(x, segments=made) if isinstance(x, Layout) else Layout(made, -3, 4)


def batch_norm(flow: Flow, name: str, module: Any, where: str, x: Layout | Untracked) -> Value:
    """Passes its channels on, and needs statistics for each sub-net even where none is sliced."""
    if isinstance(x, Untracked):
        fixed = flow.fixed(module.num_features, _INPUT)
        flow.record(flow.norms, name, where, fixed, fixed)
        return UNTRACKED
    if x.position is None and x.axis == -1:
        x = replace(x, rank=2)
    if x.position != 1:
        flow.refuse(x.segments, f"{where}: it normalises another axis than that of the channels")
        return UNTRACKED
    segments = flow.fit(x, module.num_features, where)
    flow.record(flow.norms, name, where, segments, segments)
    return x


def outputs(flow: Flow, name: str, size: int) -> tuple[Segment, ...]:
    """The group of channels that the layer ``name`` makes, the same at every call."""
    known = flow.layers.get(name)
    return (Segment(flow.groups.new(size, owner=name)),) if known is None else known.outputs


def _inputs(flow: Flow, size: int, where: str, x: Layout | Untracked, axis: int | None) -> tuple[Segment, ...]:
    if isinstance(x, Untracked):
        return flow.fixed(size, _INPUT)
    if axis is None:
        axis = x.axis if x.position == 1 else None
    if x.axis != axis:
        flow.refuse(x.segments, f"{where}: it works on another axis than that of the channels")
        return flow.fixed(size, _INPUT)
    return flow.fit(x, size, where)


def same(flow: Flow, name: str, module: Any, where: str, x: Layout | Untracked) -> Value:
    """Works on every entry alone, or along an axis as a whole."""
    return x


def spatial(flow: Flow, name: str, module: Any, where: str, x: Layout | Untracked) -> Value:
    """Works on the axes after the channels, in each channel alone."""
    if getattr(module, "return_indices", False):
        return flow.unknown(where, (x,), {})
    axes_used = 1 if type(module).__name__.endswith("1d") else 2
    return axes.spatial(flow, where, x, axes_used, axes.extent(getattr(module, "output_size", None), axes_used))


def resize(flow: Flow, name: str, module: nn.Upsample, where: str, x: Layout | Untracked) -> Value:
    """Interpolates along all axes after the second."""
    return axes.resize(flow, where, x)


def flatten(flow: Flow, name: str, module: nn.Flatten, where: str, x: Layout | Untracked) -> Value:
    """Merges axes."""
    return axes.flatten(flow, where, x, module.start_dim, module.end_dim)


def prelu(flow: Flow, name: str, module: nn.PReLU, where: str, x: Layout | Untracked) -> Value:
    """Passes its channels on if one slope serves them all."""
    return x if module.num_parameters == 1 else flow.unknown(where, (x,), {})


_SAME = (
    "CELU Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout ELU GELU Hardshrink Hardsigmoid "
    "Hardswish Hardtanh Identity LeakyReLU LogSigmoid LogSoftmax Mish ReLU ReLU6 RReLU SELU SiLU Sigmoid Softmax "
    "Softplus Softshrink Softsign Tanh Tanhshrink Threshold"
)
_SPATIAL = (
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AvgPool1d AvgPool2d CircularPad1d "
    "CircularPad2d ConstantPad1d ConstantPad2d LPPool1d LPPool2d MaxPool1d MaxPool2d ReflectionPad1d ReflectionPad2d "
    "ReplicationPad1d ReplicationPad2d ZeroPad1d ZeroPad2d"
)

_RULES: dict[type, Rule] = {
    nn.Conv2d: conv2d,
    nn.Linear: linear,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.Flatten: flatten,
    nn.Upsample: resize,
    nn.UpsamplingBilinear2d: resize,
    nn.UpsamplingNearest2d: resize,
    nn.PReLU: prelu,
    ChannelPad: channel_pad,
    **{getattr(nn, name): same for name in _SAME.split()},
    **{getattr(nn, name): spatial for name in _SPATIAL.split()},
}


def rule(module: nn.Module) -> Rule | None:
    """How channels pass through ``module``; None for a class that is not known, a subclass of a known one too."""
    if type(module) not in _RULES and isinstance(module, SlicedModule):
        return conv2d if hasattr(module, "kernel_size") else linear
    return _RULES.get(type(module))
