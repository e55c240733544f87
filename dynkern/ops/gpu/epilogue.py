"""What a kernel does to its sums before it stores them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KINDS = ("none", "clamp", "gelu", "gelu_tanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")


@dataclass(frozen=True)
class Epilogue:
    """``y = activation(scale * (sums + bias) + shift + residual)``: a folded batch norm, a shortcut, an activation.

    Attributes:
        scale, shift: (active outputs,) float32, of the sub-net that runs; None for one and zero.
        residual: of the shape and dtype of the result; None for zero.
        kind: the activation, one of :data:`KINDS`.
        low, high: the bounds of ``clamp`` (relu: 0 and infinity).
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    kind: str = "none"
    low: float = 0.0
    high: float = float("inf")

    def check(self, shape: tuple[int, ...], like: Tensor) -> None:
        """Raise ``ValueError`` unless this fits a result of ``shape`` (N, outputs, ...) computed from ``like``."""
        if self.kind not in KINDS:
            raise ValueError(f"epilogue: expected an activation of {KINDS}, got {self.kind!r}")
        for name, vector in (("scale", self.scale), ("shift", self.shift)):
            if vector is None:
                continue
            got = (tuple(vector.shape), str(vector.dtype), vector.device)
            if got != ((shape[1],), "torch.float32", like.device):
                raise ValueError(f"{name}: expected ({shape[1]},) float32 on {like.device}, got {got}")
        r = self.residual
        if r is not None and (tuple(r.shape) != shape or r.dtype != like.dtype or r.device != like.device):
            found = f"{tuple(r.shape)} {r.dtype} on {r.device}"
            raise ValueError(f"residual: expected {shape} {like.dtype} on {like.device}, got {found}")
