"""The check of a whole call: which channels run, and the shape of the result."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynkern.ops import arguments


def conv2d(
    x: Tensor,
    weight_shape: Sequence[int],
    bias: Tensor | None,
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> tuple[int, int, int, int]:
    """Shape of a sliced convolution with a weight of ``weight_shape`` (O, I / groups, kh, kw)."""
    arguments.check_tensor("x", x, 4)
    full_out, per_group, *kernel = weight_shape
    arguments.check_vector("bias", bias, full_out, x)
    arguments.check_index("in_index", in_index, x)
    arguments.check_index("out_index", out_index, x)
    if groups < 1 or full_out % groups:
        raise ValueError(f"groups: expected a divisor of the {full_out} output channels, got {groups}")
    inputs("x", x.shape[1], per_group * groups, in_index)
    if groups == 1:
        active = outputs("out_channels", full_out, out_channels, out_index)
    else:
        active = grouped(x.shape[1], full_out, per_group, groups, out_channels, in_index, out_index)
    if any(k < 1 for k in kernel):
        raise ValueError(f"weight: expected a kernel of at least 1x1, got shape {tuple(weight_shape)}")
    size = []
    for axis, name in enumerate(("height", "width")):
        padded = x.shape[2 + axis] + geometry[2 + 2 * axis] + geometry[3 + 2 * axis]
        extent = geometry[6 + axis] * (kernel[axis] - 1) + 1
        if padded < extent:
            raise ValueError(f"x: padded {name} {padded} is smaller than the kernel's extent {extent}")
        size.append((padded - extent) // geometry[axis] + 1)
    return x.shape[0], active, size[0], size[1]


def linear(
    x: Tensor,
    weight_shape: Sequence[int],
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> tuple[int, ...]:
    """Shape of a sliced linear layer with a weight of ``weight_shape`` (O, I)."""
    arguments.check_tensor("x", x, None)
    if x.dim() == 0:
        raise ValueError("x: expected at least one dimension, got a scalar")
    arguments.check_vector("bias", bias, weight_shape[0], x)
    arguments.check_index("in_index", in_index, x)
    arguments.check_index("out_index", out_index, x)
    inputs("x", x.shape[-1], weight_shape[1], in_index)
    return *x.shape[:-1], outputs("out_features", weight_shape[0], out_features, out_index)


def inputs(name: str, channels: int, limit: int, in_index: Tensor | None) -> None:
    """Check that the weight has the input channels that ``x`` brings."""
    if in_index is None and not 0 < channels <= limit:
        raise ValueError(f"{name}: expected 1 to {limit} channels (those of weight), got {channels}")
    if in_index is not None and in_index.shape[0] > limit:
        raise ValueError(f"in_index: expected at most {limit} channels (those of weight), got {in_index.shape[0]}")
    if in_index is not None and in_index.shape[0] != channels:
        raise ValueError(f"in_index: expected one entry per channel of {name} ({channels}), got {in_index.shape[0]}")


def outputs(name: str, full: int, count: int | None, out_index: Tensor | None) -> int:
    """How many of the ``full`` output channels run."""
    if out_index is None:
        return arguments.count(name, count, full, "those of weight")
    if count is not None:
        raise ValueError(f"{name}, out_index: expected at most one of them, got both")
    return out_index.shape[0]


def grouped(
    channels: int,
    full_out: int,
    per_group: int,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> int:
    """How many output channels run where a sub-net has fewer groups of the same size."""
    if out_index is not None:
        raise ValueError("out_index: expected None with groups > 1, where the active groups follow from x")
    if in_index is not None and per_group != 1:
        raise ValueError("in_index: with groups > 1 expected None, or a depthwise weight (one input channel per group)")
    if channels % per_group:
        raise ValueError(f"x: expected a multiple of {per_group} channels (one group), got {channels}")
    active = channels // per_group * (full_out // groups)
    if out_channels is not None and out_channels != active:
        raise ValueError(f"out_channels: expected {active} (the outputs of the active groups), got {out_channels}")
    return active
