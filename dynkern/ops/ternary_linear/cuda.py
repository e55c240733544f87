"""Ternary linear layer by the CUDA C++ kernels (csrc/cuda)."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import shapes
from dynkern.ops.gpu.quantized import quantize_rows
from dynkern.ops.quantize import FLOATS, Activation
from dynkern.ops.ternary_linear import cuda_counters
from dynkern.ops.ternary_linear.cuda_forms import TYPES, choose, weight_of

# Those from sm_80 on have every instruction that the kernels use.
_LEAST_CAPABILITY = (8, 0)
# Of more, a sum of int8 products might pass 32 bits (kMostInt8Inputs of csrc/cuda/ternary_linear.h).
MOST_INT8_INPUTS = 262143


def why_not(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation: Activation = FLOATS,
) -> str | None:
    """Why these kernels should not run the call; None if they should."""
    if _C.cuda_architectures is None:
        return "this build of dynkern has no CUDA C++ kernels"
    if x.dtype not in (torch.bfloat16, torch.float16) and not (activation.int8 and x.dtype == torch.float32):
        return f"{x.dtype} has no kernel"
    if in_index is not None or out_index is not None:
        return "index sets have no kernel"
    if x.numel() == 0:
        return "nothing to compute"
    if activation.int8 and x.shape[-1] > MOST_INT8_INPUTS:
        return "rows are too long for sums of int8 products"
    if torch.cuda.get_device_capability(x.device) < _LEAST_CAPABILITY:
        return "the device is older than sm_80"
    rows = x.numel() // x.shape[-1]
    if choose(torch.int8 if activation.int8 else x.dtype, rows, weight_of(packed, in_features).zeros) is None:
        return "another product is expected to be faster for many rows and this share of zeros"
    return None


def run(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation: Activation = FLOATS,
    *,
    form: str | None = None,
) -> Tensor:
    """The result, (..., active outputs), contiguous, of the dtype of ``x``.

    Where ``activation`` says so ``x`` is quantised first, by a kernel of its own; the sums are then exact whole numbers
    and the results the same bits as on the CPU. ``form`` names one of ``cuda_forms.FORMS`` in place of what the table
    says.
    """
    shape = shapes.linear(x, (packed.shape[0], in_features), bias, out_features, in_index, out_index)
    rows = x.reshape(-1, x.shape[-1])
    row_scale = None
    if activation.int8:
        rows, row_scale = quantize_rows(rows.contiguous(), activation)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    run_rows(rows, packed, scale, bias, in_features, y.view(-1, shape[-1]), row_scale=row_scale, form=form)
    return y


def run_rows(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    y: Tensor,
    *,
    row_scale: Tensor | None = None,
    form: str | None = None,
) -> None:
    """Write ``row_scale * scale * (x @ w.T) + bias`` to ``y``.

    Args:
        x: (M, C) bfloat16, float16 or int8, C at most ``in_features``; a last axis that is not contiguous is copied.
        packed: (O, ceil(in_features / 4)) uint8 codes.
        scale: (O,) float32.
        bias: (O,) of any floating-point dtype the kernels have.
        y: (M, N) contiguous, N at most O: bfloat16, float16 or float32.
        row_scale: (M,) float32, what a unit of an int8 row is worth.
    """
    if x.stride(-1) != 1 or (x.shape[0] > 1 and x.stride(0) < x.shape[1]):
        x = x.contiguous()
    weight = weight_of(packed, in_features)
    (count, inputs), outputs = x.shape, y.shape[1]
    view = weight.form(form or choose(x.dtype, count, weight.zeros) or "dense", packed)
    x_type = TYPES[x.dtype]
    floats, counters, splits = view.needs(x_type, count, inputs, outputs)
    partial = arrived = None
    if splits > 1:
        partial = torch.empty(floats, dtype=torch.float32, device=x.device)
        arrived = cuda_counters.zeros(counters, x.device)
    scale, bias, row_scale = (None if v is None else v.contiguous() for v in (scale, bias, row_scale))
    view.run(
        x.data_ptr(), x_type, count, inputs, x.stride(0), _address(row_scale), _address(scale),
        _address(bias), TYPES[torch.float32 if bias is None else bias.dtype], y.data_ptr(), TYPES[y.dtype], outputs,
        _address(partial), _address(arrived), torch.cuda.current_stream(x.device).cuda_stream,
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
