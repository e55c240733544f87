"""Linear layer with packed ternary weights; a zero weight costs no arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import quantize
from dynkern.ops.gpu import dispatch
from dynkern.ops.library import autocast, call, lib, native, taken
from dynkern.ops.ternary_linear import int8, reference
from dynkern.ops.ternary_linear.common import backward, checked_shape, save
from dynkern.ops.ternary_weight import TernaryWeight, check_weight, lists_of

lib.define(
    "ternary_linear(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, SymInt in_features, SymInt? out_features, "
    "Tensor? in_index, Tensor? out_index) -> Tensor"
)


def ternary_linear(
    x: Tensor,
    weight: TernaryWeight,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    activation: str = "float32",
    activation_scale: str | float = "row",
) -> Tensor:
    """Linear layer with a ternary weight: inputs under +1 are added, those under -1 subtracted, the rest never read.

    ``y[..., o] = bias[o] + scale[o] (sum of x under +1 - sum of x under -1)``; equation 5 of Dordoni et al., MLSP
    2024. A weight with a ``scale_minus`` runs as its two parts, in two calls.

    Args:
        x: (..., C), any strides.
        weight: of shape (O, I), see :class:`~dynkern.TernaryWeight`.
        bias: (O,).
        out_features, in_index, out_index: as in :func:`sliced_linear`; a narrower sub-net runs from the one
            packed weight.
        activation: ``"float32"``, or ``"int8"``: ``x`` is quantised to whole numbers q within +-127 and a scale s, sums
            are exact integers, and every instruction set gives the same bits (:func:`dynkern.ops.quantize.quantize`):
            ``y = bias + (scale[o] s) (sum of q under +1 - sum of q under -1)``.
        activation_scale: what one step of q stands for: ``"row"``, from the greatest magnitude of each row of the
            batch; ``"tensor"``, from that of all of ``x``; or a calibrated number.

    Returns:
        (..., active outputs), contiguous, of the dtype of ``x``. float32 on the CPU, and float32, float16 and bfloat16
        on a GPU, run dynkern's kernels; the rest runs PyTorch on the unpacked weight, which is logged once.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or range; the message names it.
    """
    check_weight(weight, 2)
    x = autocast(x, torch.float32)
    if weight.scale_minus is not None:
        plus, minus = weight.parts()
        rest: dict[str, Any] = {"out_features": out_features, "in_index": in_index, "out_index": out_index}
        rest |= {"activation": activation, "activation_scale": activation_scale}
        return ternary_linear(x, plus, bias, **rest) + ternary_linear(x, minus, **rest)
    args = (x, weight.packed, weight.scale, bias, weight.shape[1], out_features, in_index, out_index)
    how = quantize.read(activation, activation_scale)
    if how.int8:
        op = torch.ops.dynkern.ternary_linear_int8
        return call(
            op,
            (x, weight.scale, bias),
            (*args, how.scale, how.per_row),
            int8.run,
            checked_shape,
            reference.ternary_linear_int8,
        )
    op = torch.ops.dynkern.ternary_linear
    return call(op, (x, weight.scale, bias), args, _run, checked_shape, reference.ternary_linear)


def _run(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    where = (out_features, in_index, out_index)
    if isinstance(x, Tensor) and x.is_cuda:  # what is wrong is found below
        return _on_gpu(x, packed, scale, bias, in_features, *where)
    if packed.is_cpu:
        threads = torch.get_num_threads()
        lists = lists_of(packed, (packed.shape[0], in_features))
        y = _C.ternary_linear(x, lists, scale, bias, *where, threads)
        if y is not None:
            return y
    # Not what the kernel takes: wrong, or more dimensions, or another dtype or device.
    size = checked_shape(x, packed, scale, bias, in_features, *where)
    if native("ternary_linear", x):
        scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
        y = _C.ternary_linear(x.reshape(-1, x.shape[-1]), lists, scale, bias, *where, threads)
        return taken("ternary_linear", y).view(size)
    return reference.ternary_linear(x, packed, scale, bias, in_features, *where).contiguous()


lib.impl("ternary_linear", _run, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("ternary_linear", checked_shape, reference.ternary_linear)


@torch.library.register_fake("dynkern::ternary_linear", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(checked_shape(x, *args))


torch.library.register_autograd("dynkern::ternary_linear", backward, setup_context=save, lib=lib)
