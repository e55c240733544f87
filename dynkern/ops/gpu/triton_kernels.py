"""Activations as int8 on a GPU, by the rules of :func:`dynkern.ops.quantize.quantize`, bit for bit.

A row of the batch is cut into pieces, so that one long row keeps a GPU busy too: the first kernel finds the greatest
magnitude of each piece, the second reads those of its row (or of all rows) and rounds its piece. Where a row is one
piece and has a scale of its own, the second kernel does both. Launch them with ``enable_fp_fusion=False``: a product
that is fused with what follows is rounded once instead of twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["row", "pieces", "count", "given"]


@triton.jit(do_not_specialize=_SIZES)
def greatest_kernel(x, greatest, row, PIECE: tl.constexpr):
    """greatest[i, j]: the greatest magnitude in piece j of row i of x, of ``row`` numbers each; NaN if one is there."""
    piece = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    values = tl.load(x + tl.program_id(0).to(tl.int64) * row + piece, mask=piece < row, other=0)
    tl.store(greatest + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), _greatest(values))


@triton.jit
def _greatest(values):
    """The greatest magnitude. Bits of numbers that are not negative are in the order of the numbers, NaN above all."""
    bits = values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=_SIZES)
def quantize_kernel(
    x, greatest, values, scale, row, pieces, count, given,
    PIECE: tl.constexpr, PER_ROW: tl.constexpr, DYNAMIC: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """values and scale of piece j of row i: q = round(x times MOST / greatest magnitude), ties to even.

    greatest: by :func:`greatest_kernel`, ``pieces`` numbers for each of ``count`` rows; None where rows are one piece.
    PER_ROW: the greatest magnitude is that of the row, else of all rows. DYNAMIC: else the scale is ``given``.
    """
    i = tl.program_id(0)
    piece = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    inside = piece < row
    start = i.to(tl.int64) * row
    number = tl.load(x + start + piece, mask=inside, other=0).to(tl.float32)
    if greatest is None:
        most = _greatest(number)
    else:
        first, end = i * pieces, (i + 1) * pieces
        if not PER_ROW:
            first, end = 0, count * pieces
        bits = tl.zeros((1024,), tl.int32)
        for at in range(first, end, 1024):
            j = at + tl.arange(0, 1024)
            bits = tl.maximum(bits, tl.load(greatest + j, mask=j < end, other=0).to(tl.int32, bitcast=True))
        most = tl.max(bits, axis=0).to(tl.float32, bitcast=True)
    if DYNAMIC:
        zero = most < LEAST
        inverse = tl.where(zero, 0.0, tl.div_rn(tl.full((), MOST, tl.float32), most))
        factor = tl.where(zero, 0.0, tl.div_rn(most, tl.full((), MOST, tl.float32)))
        factor = tl.where(most < float("inf"), factor, float("nan"))
    else:
        inverse = tl.div_rn(tl.full((), 1.0, tl.float32), given)
        factor = tl.where(most == most, given, float("nan"))
    if tl.program_id(1) == 0:
        tl.store(scale + i, factor)
    # NaN becomes -MOST: the scale says it. Adding and taking off 1.5 * 2**23 rounds, ties to even.
    number = number * inverse
    number = tl.where(number > -MOST, tl.where(number < MOST, number, MOST), -MOST)
    rounded = (number + 12582912.0) - 12582912.0
    tl.store(values + start + piece, rounded.to(tl.int8), mask=inside)
