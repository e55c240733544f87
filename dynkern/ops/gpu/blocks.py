"""What the Triton kernels have in common: the epilogue, matrix products, and numbers whose alignment is known."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def activate(y, low, high, KIND: tl.constexpr):
    """The activations of :class:`dynkern.ops.gpu.epilogue.Activation`, on float32."""
    if KIND == "clamp":
        # Comparisons with NaN are false: it passes through, as in torch.
        y = tl.where(y < low, low, tl.where(y > high, high, y))
    elif KIND == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif KIND == "silu":
        y = y * tl.sigmoid(y)
    elif KIND == "hardswish":
        y = y * tl.minimum(tl.maximum(y + 3, 0), 6, propagate_nan=tl.PropagateNan.ALL) / 6
    elif KIND == "hardsigmoid":
        y = tl.where(y < -3, 0.0, tl.where(y > 3, 1.0, y / 6 + 0.5))
    elif KIND == "sigmoid":
        y = tl.sigmoid(y)
    elif KIND == "tanh":
        y = 2 * tl.sigmoid(2 * y) - 1
    return y


@triton.jit
def along(vector, AXIS: tl.constexpr):
    """A vector as a row (AXIS 1) or a column (AXIS 0)."""
    if AXIS == 1:
        return vector[None, :]
    else:
        return vector[:, None]


@triton.jit
def finish(
    acc, bias, scale, shift, residual, rows, outputs, in_o, where, inside, low, high,
    AXIS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """``activation(scale * (acc + bias) + shift + residual)``, on float32; what is None is left out.

    acc: the sums; outputs run along its axis AXIS. rows: where each output's bias lies, in the full vector; outputs:
    its number among the active ones, which scale and shift go by; in_o: whether it is one of them. where: offsets of
    the residual, valid where inside says so.
    """
    y = acc.to(tl.float32)
    if bias is not None:
        y += along(tl.load(bias + rows, mask=in_o, other=0).to(tl.float32), AXIS)
    if scale is not None:
        y *= along(tl.load(scale + outputs, mask=in_o, other=0), AXIS)
    if shift is not None:
        y += along(tl.load(shift + outputs, mask=in_o, other=0), AXIS)
    if residual is not None:
        y += tl.load(residual + where, mask=inside, other=0).to(tl.float32)
    return activate(y, low, high, KIND)


@triton.jit
def aligned_to(value, ALIGN: tl.constexpr):
    """``value``, which the caller knows to be a multiple of ALIGN: now the compiler knows it too."""
    return value // ALIGN * ALIGN


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """``acc + a b``. UPCAST: in the interpreter, which multiplies bfloat16 wrongly and says nothing."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


# Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 at the first import).
INTERPRETED = isinstance(activate, InterpretedFunction)
