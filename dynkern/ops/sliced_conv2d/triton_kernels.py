"""Sliced convolution on a GPU: implicit matrix product over the strides of the full weight."""

from __future__ import annotations

import triton
import triton.language as tl

from dynkern.ops.gpu.blocks import aligned_to, finish, multiply

# What changes with the width, the batch or the image: Triton would compile anew for each class of such numbers.
_SIZES = [
    "C", "O", "OT", "P", "H", "W", "OH", "OW", "I", "stride_h", "stride_w", "top", "left", "dil_h", "dil_w",
    "sxn", "sxc", "sxh", "sxw", "aligned", "multiplier", "low", "high",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def conv_kernel(
    x, w, bias, scale, shift, residual, y, in_index, out_index,
    C, O, OT, P, H, W, OH, OW, I, stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw, aligned, low, high,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, W_LAST: tl.constexpr, ORDER: tl.constexpr,
    ALIGN: tl.constexpr, IN_GROUP: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_P pixels (of all images) and BLOCK_O outputs of one group.

    x (N, groups C, H, W), strides sx.; y (N, OT, OH, OW); w the full weight (all O, I, KH, KW). C inputs and O outputs
    run per group; P = N OH OW pixels.

    LAST: channels are the last axis in memory, of x and y (residual is as y); else the width is. W_LAST: of w.
    ORDER: how the reduction runs. "tap": one tap of the kernel and BLOCK_K channels at a time; "flat": taps, then
        channels, so that no block is half empty where channels are few; "channel": channels, then taps.
    ALIGN: 8 if addresses, C, O, OT, I and strides are multiples of 8 (then 16 bytes are read at once); 0 if ``aligned``
        tells whether they are.
    IN_GROUP: with in_index, how many of its entries follow one another from a multiple of that number: 8 (then it
        holds that multiple over 8, once per group) or 1.
    """
    blocks_o = tl.cdiv(O, BLOCK_O)
    pid, group = tl.program_id(0), tl.program_id(1)
    p = pid // blocks_o * BLOCK_P + tl.arange(0, BLOCK_P)
    o = pid % blocks_o * BLOCK_O + tl.arange(0, BLOCK_O)
    if ALIGN == 8:
        O, OT = aligned_to(O, 8), aligned_to(OT, 8)
    q = group * O + o
    rows = q
    if out_index is not None:
        rows = tl.load(out_index + o, mask=o < O, other=0).to(tl.int32)
    image, pixel = p // (OH * OW), p % (OH * OW)
    oh, ow = pixel // OW, pixel % OW
    acc = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    if ALIGN == 8 or not LAST:  # ALIGN is a constant here, and there is one loop in the kernel
        acc = _sum(
            acc, x, w, in_index, group, image, oh, ow, p < P, o < O, rows, C, H, W, I,
            stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
            KH, KW, LAST, W_LAST, ORDER, 8 if ALIGN == 8 else 1, IN_GROUP, PRECISION, UPCAST, BLOCK_P, BLOCK_K,
        )  # fmt: skip
    elif aligned:
        acc = _sum(
            acc, x, w, in_index, group, image, oh, ow, p < P, o < O, rows, C, H, W, I,
            stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
            KH, KW, LAST, W_LAST, ORDER, 8, IN_GROUP, PRECISION, UPCAST, BLOCK_P, BLOCK_K,
        )  # fmt: skip
    else:
        acc = _sum(
            acc, x, w, in_index, group, image, oh, ow, p < P, o < O, rows, C, H, W, I,
            stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
            KH, KW, LAST, W_LAST, ORDER, 1, IN_GROUP, PRECISION, UPCAST, BLOCK_P, BLOCK_K,
        )  # fmt: skip
    if LAST:
        inside = (p < P)[:, None] & (o < O)[None, :]
        where = p[:, None] * OT + q[None, :]
        out = finish(acc, bias, scale, shift, residual, rows, q, o < O, where, inside, low, high, 1, KIND)
    else:
        inside = (o < O)[:, None] & (p < P)[None, :]
        where = q[:, None] * (OH * OW) + (image * OT * OH * OW + pixel)[None, :]
        out = finish(tl.trans(acc), bias, scale, shift, residual, rows, q, o < O, where, inside, low, high, 0, KIND)
    tl.store(y + where, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _sum(
    acc, x, w, in_index, group, image, oh, ow, in_p, in_o, rows, C, H, W, I,
    stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, W_LAST: tl.constexpr, ORDER: tl.constexpr,
    ALIGN: tl.constexpr, IN_GROUP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``acc`` plus the whole reduction."""
    TAPS: tl.constexpr = KH * KW
    C, I = aligned_to(C, ALIGN), aligned_to(I, ALIGN)
    if LAST:
        sxc = 1
        sxn, sxh, sxw = aligned_to(sxn, ALIGN), aligned_to(sxh, ALIGN), aligned_to(sxw, ALIGN)
    else:
        sxw = 1
    ih0, iw0 = oh * stride_h - top, ow * stride_w - left
    x_base = image * sxn + ih0 * sxh + iw0 * sxw + group * C * sxc
    w_base = rows * (TAPS * I)
    channel_blocks = tl.cdiv(C, BLOCK_K)
    if ORDER == "tap":
        steps = TAPS * channel_blocks
    else:
        steps = tl.cdiv(TAPS * C, BLOCK_K)
    for step in range(steps):
        if ORDER == "tap":
            tap = step // channel_blocks
            c = step % channel_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
            in_k = c < C
        else:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            if ORDER == "flat":
                c, tap = k % C, k // C
            else:
                c, tap = k // TAPS, k % TAPS
            in_k = k < TAPS * C
        kh, kw = tap // KW, tap % KW
        if ORDER == "tap":
            ih, iw = ih0 + kh * dil_h, iw0 + kw * dil_w
            valid = in_p & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
            in_x = valid[:, None] & in_k[None, :] if LAST else in_k[:, None] & valid[None, :]
        elif LAST:
            ih, iw = ih0[:, None] + (kh * dil_h)[None, :], iw0[:, None] + (kw * dil_w)[None, :]
            in_x = in_p[:, None] & in_k[None, :] & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
        else:
            ih, iw = ih0[None, :] + (kh * dil_h)[:, None], iw0[None, :] + (kw * dil_w)[:, None]
            in_x = in_k[:, None] & in_p[None, :] & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
        x_offset = kh * dil_h * sxh + kw * dil_w * sxw + c * sxc
        if LAST:
            x_tile = tl.load(x + x_base[:, None] + x_offset[None, :], mask=in_x, other=0)
        else:
            x_tile = tl.trans(tl.load(x + x_offset[:, None] + x_base[None, :], mask=in_x, other=0))
        wc = c
        if in_index is not None:
            wc = tl.load(in_index + c // IN_GROUP, mask=in_k, other=0).to(tl.int32) * IN_GROUP + c % IN_GROUP
            if IN_GROUP == 8 and ALIGN == 8:
                wc = tl.max_contiguous(tl.multiple_of(wc, 8), 8)
        if W_LAST:
            w_offset = tap * I + wc
        elif ORDER == "channel" and in_index is None:
            w_offset = k
        else:
            w_offset = wc * TAPS + tap
        w_tile = tl.load(w + w_offset[:, None] + w_base[None, :], mask=in_k[:, None] & in_o[None, :], other=0)
        acc = multiply(x_tile, w_tile, acc, PRECISION, UPCAST)
    return acc


@triton.jit(do_not_specialize=_SIZES)
def depthwise_kernel(
    x, w, bias, scale, shift, residual, y, in_index,
    OT, P, H, W, OH, OW, multiplier, stride_h, stride_w, top, left, dil_h, dil_w, sxn, sxc, sxh, sxw, low, high,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, SINGLE: tl.constexpr,
    KIND: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One tile of a convolution whose every output reads one channel of x: no matrix product, so no tensor cores.

    As :func:`conv_kernel`; w is (all filters, 1, KH, KW), and output q reads channel q // multiplier by the filter of
    that channel, or of channel in_index[q // multiplier] of the full weight. ALIGN: 8 or 1. SINGLE: multiplier is 1.
    """
    if LAST:
        OT, sxn = aligned_to(OT, ALIGN), aligned_to(sxn, ALIGN)
        sxh, sxw = aligned_to(sxh, ALIGN), aligned_to(sxw, ALIGN)
    blocks_o = tl.cdiv(OT, BLOCK_O)
    pid = tl.program_id(0)
    p = pid // blocks_o * BLOCK_P + tl.arange(0, BLOCK_P)
    q = pid % blocks_o * BLOCK_O + tl.arange(0, BLOCK_O)
    in_p, in_o = p < P, q < OT
    c, rows = q if SINGLE else q // multiplier, q
    if in_index is not None:
        rows = tl.load(in_index + c, mask=in_o, other=0).to(tl.int32) * multiplier + q % multiplier
    image, pixel = p // (OH * OW), p % (OH * OW)
    ih0, iw0 = pixel // OW * stride_h - top, pixel % OW * stride_w - left
    if LAST:
        x_base = (image * sxn + ih0 * sxh + iw0 * sxw)[:, None] + c[None, :]
        inside = in_p[:, None] & in_o[None, :]
        where = p[:, None] * OT + q[None, :]
        acc = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    else:
        x_base = (c * sxc)[:, None] + (image * sxn + ih0 * sxh + iw0)[None, :]
        inside = in_o[:, None] & in_p[None, :]
        where = q[:, None] * (OH * OW) + (image * OT * OH * OW + pixel)[None, :]
        acc = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for kh in range(KH):
        for kw in range(KW):
            ih, iw = ih0 + kh * dil_h, iw0 + kw * dil_w
            valid = in_p & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
            tap = tl.load(w + rows * (KH * KW) + kh * KW + kw, mask=in_o, other=0).to(tl.float32)
            offset = kh * dil_h * sxh + kw * dil_w * (sxw if LAST else 1)
            if LAST:
                values = tl.load(x + x_base + offset, mask=inside & valid[:, None], other=0)
                acc += values.to(tl.float32) * tap[None, :]
            else:
                values = tl.load(x + x_base + offset, mask=inside & valid[None, :], other=0)
                acc += values.to(tl.float32) * tap[:, None]
    axis: tl.constexpr = 1 if LAST else 0
    out = finish(acc, bias, scale, shift, residual, rows, q, in_o, where, inside, low, high, axis, KIND)
    tl.store(y + where, out.to(y.dtype.element_ty), mask=inside)
