"""How channels pass through functions and methods of tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynkern.subnets import axes
from dynkern.subnets.flow import Flow
from dynkern.subnets.layout import SCALAR, UNTRACKED, Dim, Layout, Scalar, Segment, Shape, Untracked, Value

Rule = Callable[[Flow, str, tuple[Any, ...], dict[str, Any]], Value]


def call(flow: Flow, target: Any, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """The result of a function, or of a method when ``target`` is a name."""
    rule = METHODS.get(target) if isinstance(target, str) else FUNCTIONS.get(target)
    return flow.unknown(where, args, kwargs) if rule is None else rule(flow, where, args, kwargs)


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    """An argument given by its place or by its name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def elementwise(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Entries at the same place are put together, so that their channels must be sliced alike."""
    values = [*args, *kwargs.values()]
    x: Layout | None = None
    for value in values:
        if isinstance(value, Layout):
            x = value if x is None else couple(flow, where, x, value)
    if x is None:
        return UNTRACKED if any(isinstance(v, (Untracked, Tensor)) for v in values) else SCALAR
    for value in values:
        if isinstance(value, Untracked):
            flow.pin(x.segments, f"{where} puts them together with channels that are never sliced")
        elif isinstance(value, Tensor):
            constant(flow, where, x, value)
    other = any(isinstance(v, Untracked) or (isinstance(v, Tensor) and v.numel() > 1) for v in values)
    return replace(x, extent=None) if other else x


def couple(flow: Flow, where: str, a: Layout, b: Layout) -> Layout:
    """The layout of a result that has the channels of both ``a`` and ``b``."""
    if a.axis != b.axis:
        axes.refused(flow, where, a, "it puts their axis together with another one")
        axes.refused(flow, where, b, "it puts their axis together with another one")
        return a
    ranks = (a.rank, b.rank)
    rank = None if None in ranks else max(r for r in ranks if r is not None)
    extents = {a.extent, b.extent} - {1}
    extent = 1 if not extents else extents.pop() if len(extents) == 1 else None
    if single(flow, b):
        segments = a.segments
    elif single(flow, a):
        segments = b.segments
    else:
        message = f"{where}: it puts together channels that are composed differently"
        segments = flow.join(a.segments, b.segments, message)
    return Layout(segments, a.axis, rank, extent)


def single(flow: Flow, x: Layout) -> bool:
    """True for a single channel, which broadcasts."""
    first, *more = x.segments
    return not more and flow.groups.repeat(first) == 1 and flow.groups.size(first.group) == 1


def constant(flow: Flow, where: str, x: Layout, tensor: Tensor) -> None:
    """Refuse a parameter or buffer that has an entry for each channel, for want of one for each sub-net."""
    more_axes = x.rank is None or tensor.dim() > x.rank
    if tensor.numel() > 1 and (more_axes or (tensor.dim() >= -x.axis and tensor.shape[x.axis] > 1)):
        axes.refused(flow, where, x, f"it has a parameter or buffer of shape {tuple(tensor.shape)} for its channels")


def concatenate(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Channels one after the other; along another axis, side by side."""
    parts = argument(args, kwargs, 0, "tensors")
    dim = argument(args, kwargs, 1, "dim", kwargs.get("axis", 0))
    if not isinstance(parts, (tuple, list)) or not isinstance(dim, int):
        return flow.unknown(where, args, kwargs)
    tracked = [p for p in parts if isinstance(p, Layout)]
    if not tracked:
        return UNTRACKED
    first = tracked[0]
    if any(p.axis != first.axis or p.rank != first.rank for p in tracked) or first.from_end(dim) is None:
        return flow.unknown(where, args, kwargs)
    if first.from_end(dim) != first.axis:
        x = elementwise(flow, where, tuple(parts), {})
        return replace(x, extent=None) if isinstance(x, Layout) else x
    segments: list[Segment] = []
    for part in parts:
        if isinstance(part, Layout):
            segments += part.segments
        else:
            segments.append(Segment(flow.groups.new(None, pin="they come from the network's input")))
    extents = {p.extent for p in tracked}
    return replace(first, segments=tuple(segments), extent=extents.pop() if len(extents) == 1 else None)


def shape(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``x.size()`` or ``x.size(dim)``."""
    x, dim = args[0], argument(args, kwargs, 1, "dim")
    if not isinstance(x, (Layout, Untracked)):
        return SCALAR
    return Shape(x) if dim is None else Dim(x, dim) if isinstance(dim, int) else SCALAR


def attribute(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``x.name``."""
    x, name = args[:2]
    if not isinstance(x, (Layout, Untracked)) or name in ("dtype", "device", "ndim", "requires_grad", "is_cuda"):
        return SCALAR
    return Shape(x) if name == "shape" else flow.unknown(where, args, kwargs)


def item(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``x[key]``, of a tensor or of a shape."""
    x, key = args
    if isinstance(x, Shape):
        return Dim(x.of, key) if isinstance(key, int) else SCALAR
    return SCALAR if isinstance(x, Scalar) else axes.index(flow, where, x, key)


def same(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Another form of the first argument."""
    return elementwise(flow, where, args[:1], {})


def scalar(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """A value that is no tensor."""
    return SCALAR


def flatten(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``flatten(x, start_dim, end_dim)``."""
    x = argument(args, kwargs, 0, "input")
    start, end = argument(args, kwargs, 1, "start_dim", 0), argument(args, kwargs, 2, "end_dim", -1)
    return axes.flatten(flow, where, x, start, end)


def view(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``x.view(*sizes)``, ``x.reshape(sizes)``."""
    x = argument(args, kwargs, 0, "input")
    sizes = args[1:] if len(args) > 1 else kwargs.get("shape", kwargs.get("size", ()))
    return axes.view(flow, where, x, sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes)


def reduce(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``mean(x, dim, keepdim)``."""
    x, dims, keepdim = (argument(args, kwargs, i, name) for i, name in enumerate(("input", "dim", "keepdim")))
    return axes.reduce(flow, where, x, dims, bool(keepdim))


def squeeze(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``squeeze(x, dim)``."""
    return axes.squeeze(flow, where, argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "dim"))


def unsqueeze(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``unsqueeze(x, dim)``."""
    return axes.unsqueeze(flow, where, argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "dim"))


def pad(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``pad(x, widths)``."""
    return axes.pad(flow, where, argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "pad"))


def pool(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, dims: int) -> Value:
    """Pooling along the last ``dims`` axes."""
    if kwargs.get("return_indices"):
        return flow.unknown(where, args, kwargs)
    return axes.spatial(flow, where, argument(args, kwargs, 0, "input"), dims, None)


def adaptive_pool(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, dims: int) -> Value:
    """Pooling to a given size along the last ``dims`` axes."""
    if kwargs.get("return_indices"):
        return flow.unknown(where, args, kwargs)
    size = axes.extent(argument(args, kwargs, 1, "output_size"), dims)
    return axes.spatial(flow, where, argument(args, kwargs, 0, "input"), dims, size)


def resize(flow: Flow, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """``interpolate(x, ...)``."""
    return axes.resize(flow, where, argument(args, kwargs, 0, "input"))


# Names in torch, torch.nn.functional, operator and torch.Tensor, with and without the underscore of in-place ones.
_ELEMENTWISE = (
    "abs add addcdiv addcmul alpha_dropout celu clamp clamp_max clamp_min clip clone contiguous cos detach div "
    "dropout dropout1d dropout2d dropout3d elu eq erf exp expand_as expm1 feature_alpha_dropout floor ge gelu gt "
    "hardshrink hardsigmoid hardswish hardtanh iadd imul isub itruediv le leaky_relu lerp log log1p log_softmax "
    "logsigmoid lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative pos pow reciprocal "
    "relu relu6 round rrelu rsqrt rsub selu sigmoid sign silu sin softmax softmin softplus softshrink softsign "
    "sqrt square sub subtract tanh tanhshrink threshold true_divide truediv where"
)
_BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(("bfloat16", "cpu", "cuda", "double", "float", "half", "to", "type", "type_as"), same),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "logsumexp"), reduce),
    **dict.fromkeys(("view", "reshape"), view),
    **dict.fromkeys(("dim", "numel", "is_floating_point"), scalar),
    **dict.fromkeys(("interpolate", "upsample"), resize),
    **{f"{kind}_pool{d}d": partial(pool, dims=d) for kind in ("avg", "max", "lp") for d in (1, 2)},
    **{f"adaptive_{kind}_pool{d}d": partial(adaptive_pool, dims=d) for kind in ("avg", "max") for d in (1, 2)},
    "flatten": flatten,
    "pad": pad,
    "size": shape,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
}
_BY_NAME |= {f"{name}_": rule for name, rule in _BY_NAME.items()}

METHODS: dict[str, Rule] = {name: rule for name, rule in _BY_NAME.items() if hasattr(Tensor, name)}
FUNCTIONS: dict[Any, Rule] = {
    getattr(space, name): rule
    for space in (torch, F, operator)
    for name, rule in _BY_NAME.items()
    if callable(getattr(space, name, None))
}
FUNCTIONS |= {operator.getitem: item, getattr: attribute}
