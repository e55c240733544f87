"""Arithmetic with epilogues: two in a row as one, and their final form. Vectors are float64 until then."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dynkern.engine.plan import Activation, Epilogue


def compose(first: Epilogue, second: Epilogue) -> Epilogue | None:
    """The epilogue that does ``second`` to the result of ``first``; None if one epilogue cannot."""
    if first.activation.kind != "none":
        if second.scale is not None or second.shift is not None or second.residual is not None:
            return None
        activation = _chain(first.activation, second.activation)
        return None if activation is None else replace(first, activation=activation)
    scale = times(first.scale, second.scale)
    shift = plus(None if first.shift is None else times(first.shift, second.scale), second.shift)
    residual, residual_scale = second.residual, second.residual_scale
    if first.residual is not None:
        if residual is not None:
            return None
        residual, residual_scale = first.residual, times(first.residual_scale, second.scale)
    return Epilogue(scale, shift, residual, residual_scale, second.activation)


def swapped(epilogue: Epilogue, x: int) -> Epilogue:
    """The same function of a step on ``x``, for the step whose argument is what was the residual."""
    return replace(epilogue, scale=epilogue.residual_scale, residual=x, residual_scale=epilogue.scale)


def absorbed(epilogue: Epilogue, inner: Epilogue, x: int) -> Epilogue | None:
    """``epilogue``, whose residual was ``inner`` of value ``x``, with ``x`` as its residual; None if one cannot."""
    if inner.residual is not None or inner.activation.kind != "none":
        return None
    moved = None if inner.shift is None else times(inner.shift, epilogue.residual_scale)
    residual_scale = times(inner.scale, epilogue.residual_scale)
    return replace(epilogue, shift=plus(epilogue.shift, moved), residual=x, residual_scale=residual_scale)


def finished(epilogue: Epilogue, dtype: torch.dtype) -> Epilogue:
    """``epilogue`` with its vectors rounded to ``dtype``, and without those that change nothing."""
    return replace(
        epilogue,
        scale=_rounded(epilogue.scale, 1, dtype),
        shift=_rounded(epilogue.shift, 0, dtype),
        residual_scale=_rounded(epilogue.residual_scale, 1, dtype),
    )


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product of two scales, where None is one."""
    return b if a is None else a if b is None else a * b


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two shifts, where None is zero."""
    return b if a is None else a if b is None else a + b


def _chain(first: Activation, second: Activation) -> Activation | None:
    if second.kind == "none":
        return first
    if first.kind != "clamp" or second.kind != "clamp":
        return None
    low, high = (min(max(bound, second.low), second.high) for bound in (first.low, first.high))
    return Activation("clamp", low, high)


def _rounded(vector: Tensor | None, neutral: float, dtype: torch.dtype) -> Tensor | None:
    if vector is None or bool((vector == neutral).all()):
        return None
    return vector.to(dtype).contiguous()
