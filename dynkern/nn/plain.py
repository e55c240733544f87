"""From the slice of a layer to a plain torch layer of that size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynkern.nn.selection import Slice
from dynkern.ops import slices


def plain_conv2d(layer: Any, s: Slice) -> nn.Conv2d:
    """A :class:`torch.nn.Conv2d` with a copy of the channels ``s`` of ``layer``.

    Args:
        layer: has the attributes of :class:`torch.nn.Conv2d`, and ``effective_weight()``, its full weight.
        s: the channels; of a depthwise layer those of the inputs decide.
    """
    grouped = layer.groups > 1
    conv = nn.utils.skip_init(
        nn.Conv2d,
        s.inputs,
        s.outputs,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=s.inputs * layer.groups // layer.in_channels if grouped else 1,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )
    full = layer.effective_weight()
    rows = slices.conv_rows(full.shape, s.inputs, layer.groups, None, s.in_index, None) if grouped else s.rows
    return _filled(conv, layer, full, rows, slice(None) if grouped else s.columns)


def plain_linear(layer: Any, s: Slice) -> nn.Linear:
    """A :class:`torch.nn.Linear` with a copy of the features ``s`` of ``layer``, as :func:`plain_conv2d`."""
    linear = nn.utils.skip_init(nn.Linear, s.inputs, s.outputs, bias=layer.bias is not None)
    return _filled(linear, layer, layer.effective_weight(), s.rows, s.columns)


def _filled(plain: Any, layer: Any, full: Tensor, rows: Tensor | slice, columns: Tensor | slice) -> Any:
    """``plain`` with copies of the active weights and biases, trainable where those of ``layer`` are."""
    with torch.no_grad():
        weight = full[rows][:, columns].clone(memory_format=torch.contiguous_format)
        plain.weight = nn.Parameter(weight, requires_grad=getattr(layer.weight, "requires_grad", False))
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias[rows].clone(), requires_grad=layer.bias.requires_grad)
    return plain.train(layer.training)
