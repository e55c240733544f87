"""Ternary products and convolutions on a GPU: 2-bit weights, decoded in registers on their way to tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from dynkern.ops.gpu.blocks import aligned_to, finish, multiply

_SIZES = [
    "C", "O", "OF", "OT", "P", "H", "W", "OH", "OW", "blocks", "stride_h", "stride_w", "top", "left", "dil_h", "dil_w",
    "sxn", "sxc", "sxh", "sxw", "aligned", "low", "high",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def ternary_kernel(
    x, x_scale, codes, w_scale, bias, scale, shift, residual, y,
    C, O, OF, OT, P, H, W, OH, OW, blocks, stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
    aligned, low, high,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, KIND: tl.constexpr,
    SPLIT: tl.constexpr, PACK: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_O outputs and BLOCK_P pixels (of all images; a linear layer's rows are 1x1 images).

    x (N, C, H, W): floating point, or int8 to be multiplied by x_scale (one per image). codes: see
    :mod:`dynkern.ops.gpu.ternary_codes`, of OF outputs and ``blocks`` blocks of channels per tap. y (N, OT, OH, OW).
    The weights are the first factor, so that decoded ones stay in registers however few pixels there are.

    LAST, ALIGN, aligned: as in sliced convolution. SPLIT: x is float32 and is cut into three bfloat16 parts, whose
    products with weights of one are exact. PACK: see :func:`decode`; 0 in the interpreter.
    """
    blocks_o = tl.cdiv(O, BLOCK_O)
    pid = tl.program_id(0)
    p = pid // blocks_o * BLOCK_P + tl.arange(0, BLOCK_P)
    o = pid % blocks_o * BLOCK_O + tl.arange(0, BLOCK_O)
    image, pixel = p // (OH * OW), p % (OH * OW)
    integer: tl.constexpr = x.dtype.element_ty == tl.int8
    acc = tl.zeros((BLOCK_O, BLOCK_P), tl.int32 if integer else tl.float32)
    if ALIGN == 8 or not LAST:  # where the width is last in memory, channels need no alignment
        acc = _sum(
            acc, x, codes, image, pixel // OW, pixel % OW, p < P, o, O, C, OF, H, W, blocks,
            stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
            KH, KW, LAST, ALIGN, SPLIT, PACK, UPCAST, BLOCK_P, QUARTER,
        )  # fmt: skip
    elif aligned:
        acc = _sum(
            acc, x, codes, image, pixel // OW, pixel % OW, p < P, o, O, C, OF, H, W, blocks,
            stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
            KH, KW, LAST, 8, SPLIT, PACK, UPCAST, BLOCK_P, QUARTER,
        )  # fmt: skip
    else:
        acc = _sum(
            acc, x, codes, image, pixel // OW, pixel % OW, p < P, o, O, C, OF, H, W, blocks,
            stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
            KH, KW, LAST, 1, SPLIT, PACK, UPCAST, BLOCK_P, QUARTER,
        )  # fmt: skip
    if ALIGN == 8 and LAST:
        OT = aligned_to(OT, 8)
    total = acc.to(tl.float32)
    if integer:
        # The two scales first: the CPU's kernels round in this order.
        factor = tl.load(x_scale + image, mask=p < P, other=0)[None, :]
        if w_scale is not None:
            factor = factor * tl.load(w_scale + o, mask=o < O, other=0)[:, None]
        total *= factor
    elif w_scale is not None:
        total *= tl.load(w_scale + o, mask=o < O, other=0)[:, None]
    inside = (o < O)[:, None] & (p < P)[None, :]
    if LAST:
        where = p[None, :] * OT + o[:, None]
    else:
        where = o[:, None] * (OH * OW) + (image * OT * OH * OW + pixel)[None, :]
    out = finish(total, bias, scale, shift, residual, o, o, o < O, where, inside, low, high, 0, KIND)
    tl.store(y + where, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _sum(
    acc, x, codes, image, oh, ow, in_p, o, O, C, OF, H, W, blocks,
    stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr,
    SPLIT: tl.constexpr, PACK: tl.constexpr, UPCAST: tl.constexpr, BLOCK_P: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """``acc`` plus the whole reduction."""
    if LAST:
        sxc, C = 1, aligned_to(C, ALIGN)
        sxn, sxh, sxw = aligned_to(sxn, ALIGN), aligned_to(sxh, ALIGN), aligned_to(sxw, ALIGN)
    else:
        sxw = 1
    ih0, iw0 = oh * stride_h - top, ow * stride_w - left
    x_base = image * sxn + ih0 * sxh + iw0 * sxw
    b = tl.arange(0, QUARTER)
    channel_blocks = tl.cdiv(C, 4 * QUARTER)
    for step in range(KH * KW * channel_blocks):
        if KH * KW == 1:
            tap, block = 0, step
        else:
            tap, block = step // channel_blocks, step % channel_blocks
        kh, kw = tap // KW, tap % KW
        ih, iw = ih0 + kh * dil_h, iw0 + kw * dil_w
        valid = in_p & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
        tile = codes + ((tap * blocks + block) * OF + o[:, None]) * QUARTER + b[None, :]
        packed = tl.load(tile, mask=(o < O)[:, None], other=0)
        w0, w1, w2, w3 = decode(packed, tl.bfloat16 if SPLIT else x.dtype.element_ty, PACK)
        x_tap = x + kh * dil_h * sxh + kw * dil_w * sxw
        c = block * (4 * QUARTER) + b
        x0 = _load(x_tap, x_base, c, C, sxc, valid, LAST)
        x1 = _load(x_tap, x_base, c + QUARTER, C, sxc, valid, LAST)
        x2 = _load(x_tap, x_base, c + 2 * QUARTER, C, sxc, valid, LAST)
        x3 = _load(x_tap, x_base, c + 3 * QUARTER, C, sxc, valid, LAST)
        acc = _multiply(w0, x0, acc, SPLIT, UPCAST)
        acc = _multiply(w1, x1, acc, SPLIT, UPCAST)
        acc = _multiply(w2, x2, acc, SPLIT, UPCAST)
        acc = _multiply(w3, x3, acc, SPLIT, UPCAST)
    return acc


@triton.jit
def _load(x, x_base, c, C, sxc, valid, LAST: tl.constexpr):
    """(channels, pixels) of x, read along the axis that is contiguous."""
    if LAST:
        return tl.trans(
            tl.load(x + x_base[:, None] + (c * sxc)[None, :], mask=valid[:, None] & (c < C)[None, :], other=0)
        )
    else:
        return tl.load(x + x_base[None, :] + (c * sxc)[:, None], mask=valid[None, :] & (c < C)[:, None], other=0)


@triton.jit
def _multiply(w, x, acc, SPLIT: tl.constexpr, UPCAST: tl.constexpr):
    """``acc + w x``."""
    if SPLIT:
        for _ in tl.static_range(3):
            # The upper 16 bits: cut, not rounded, so that nothing becomes infinite that was not.
            part = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            x = tl.where(part == x, 0.0, x - part)
            acc = multiply(w, part.to(tl.bfloat16), acc, "ieee", UPCAST)
        return acc
    else:
        return multiply(w, x, acc, "ieee", UPCAST and x.dtype.is_floating())


# Each byte holds one weight of each quarter, in two's complement. Their codes are put into the lower bits of a float's
# mantissa, under an exponent that makes them whole numbers, and a fused multiply-add takes off what is too much. Two
# numbers share a register. In: PACK bytes; out: PACK / 2 registers for each quarter.


def _half_ptx(pack: int, kind: str, exponent: int, base: float, mantissa: int, bits: dict[float, int]) -> str:
    """PTX that decodes to ``kind``, of so many bits of mantissa; ``exponent``: the pattern of ``base`` = 2 ** them."""
    pairs = pack // 2
    body = "{\n.reg .b32 a, b, t, f, l;\n"
    for pair in range(pairs):
        body += f"prmt.b32 {'ab'[pair]}, ${4 * pairs}, 0, {(0x4140, 0x4342)[pair]:#x};\n"
    for quarter in range(4):
        # A code must fit into the mantissa; the last of bfloat16 does not.
        shift = 0 if 2 * quarter + 2 <= mantissa else 2 * quarter
        step = 4**quarter if not shift else 1
        mask, magic = 3 * step * 0x10001, (exponent | 2 * step) * 0x10001
        factor, less = bits[1 / step] * 0x10001, bits[-(base / step + 2)] * 0x10001
        body += f"mov.b32 f, {factor:#x};\nmov.b32 l, {less:#x};\n"
        for pair in range(pairs):
            source = "ab"[pair]
            body += f"shr.u32 t, {source}, {shift};\n" if shift else f"mov.b32 t, {source};\n"
            body += f"lop3.b32 t, t, {mask:#x}, {magic:#x}, 0x6a;\n"  # (t & mask) ^ magic
            body += f"fma.rn.{kind}x2 ${pairs * quarter + pair}, t, f, l;\n"
    return body + "}"


# Bit patterns of the few numbers needed.
_BF16 = {1.0: 0x3F80, 0.25: 0x3E80, 0.0625: 0x3D80, -130.0: 0xC302, -34.0: 0xC208, -10.0: 0xC120}
_FP16 = {
    1.0: 0x3C00, 0.25: 0x3400, 0.0625: 0x2C00, 0.015625: 0x2400,
    -1026.0: 0xE402, -258.0: 0xDC08, -66.0: 0xD420, -18.0: 0xCC80,
}  # fmt: skip
BF16_PTX2 = tl.constexpr(_half_ptx(2, "bf16", 0x4300, 128.0, 7, _BF16))
BF16_PTX4 = tl.constexpr(_half_ptx(4, "bf16", 0x4300, 128.0, 7, _BF16))
FP16_PTX2 = tl.constexpr(_half_ptx(2, "f16", 0x6400, 1024.0, 10, _FP16))
FP16_PTX4 = tl.constexpr(_half_ptx(4, "f16", 0x6400, 1024.0, 10, _FP16))


def _int8_ptx() -> str:
    """PTX for int8: each code c becomes ``(c ^ 2) - 2``, four at a time; no byte borrows from the next."""
    body = "{\n.reg .b32 t;\n"
    for quarter in range(4):
        body += f"shr.u32 t, $4, {2 * quarter};\n" if quarter else "mov.b32 t, $4;\n"
        body += "lop3.b32 t, t, 0x3030303, 0x2020202, 0x6a;\n"
        body += f"add.u32 t, t, 0x7e7e7e7e;\nxor.b32 ${quarter}, t, 0x80808080;\n"
    return body + "}"


INT8_PTX = tl.constexpr(_int8_ptx())


@triton.jit
def decode(packed, DTYPE: tl.constexpr, PACK: tl.constexpr):
    """The four weights of each byte, as tensors of DTYPE. PACK: how many bytes PTX takes at once, or 0 for no PTX."""
    if PACK > 0:
        if tl.int8 == DTYPE:
            return tl.inline_asm_elementwise(
                INT8_PTX, "=r,=r,=r,=r,r", [packed], (tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4
            )
        elif tl.bfloat16 == DTYPE:
            return tl.inline_asm_elementwise(
                BF16_PTX2 if PACK == 2 else BF16_PTX4, "=r,=r,=r,=r,r" if PACK == 2 else "=r,=r,=r,=r,=r,=r,=r,=r,r",
                [packed], (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=PACK,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                FP16_PTX2 if PACK == 2 else FP16_PTX4, "=r,=r,=r,=r,r" if PACK == 2 else "=r,=r,=r,=r,=r,=r,=r,=r,r",
                [packed], (tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=PACK,
            )  # fmt: skip
    else:
        return _plain(packed, 0, DTYPE), _plain(packed, 2, DTYPE), _plain(packed, 4, DTYPE), _plain(packed, 6, DTYPE)


@triton.jit
def _plain(packed, SHIFT: tl.constexpr, DTYPE: tl.constexpr):
    """One weight of each byte. By way of float32, since the interpreter turns integers into bfloat16 wrongly."""
    return ((((packed >> SHIFT).to(tl.int32) & 3) ^ 2) - 2).to(tl.float32).to(DTYPE)
