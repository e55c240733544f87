"""Ternary linear layer by Triton: a 1x1 ternary convolution on one image of one pixel per row of x."""

from __future__ import annotations

from torch import Tensor

from dynkern.ops.gpu import configs, layout
from dynkern.ops.gpu.epilogue import Epilogue
from dynkern.ops.quantize import FLOATS, Activation
from dynkern.ops.sliced_conv2d.triton import DTYPES, NOTHING
from dynkern.ops.sliced_linear.triton import POINT, as_pixels, from_pixels, with_pixels
from dynkern.ops.ternary_conv2d.triton import run as run_conv2d


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
    """Why PyTorch should run this call; None if the kernel should."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} has no kernel"
    if x.numel() == 0:
        return "nothing to compute"
    rows = x.numel() // x.shape[-1]
    if layout.too_large(x, (rows, packed.shape[0])):
        return "more elements than 32 bits count"
    dtype = "int8" if activation.int8 else str(x.dtype).removeprefix("torch.")
    layer = configs.Layer("ternary_linear", dtype, packed.shape[0], in_features, 1, rows, True)
    row = configs.row_for(configs.device_of(x), layer)
    return None if row.wide is not None else "PyTorch was measured to be faster"


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
    epilogue: Epilogue = NOTHING,
    config: tuple[configs.Config, int] | None = None,
) -> Tensor:
    """``epilogue(ternary_linear(...))``; as of the convolution, a row being an image."""
    images = as_pixels(x)
    y = run_conv2d(
        images, packed, scale, bias, (packed.shape[0], in_features, 1, 1), POINT, 1, out_features, in_index, out_index,
        activation, epilogue=with_pixels(epilogue), config=config, op="ternary_linear",
    )  # fmt: skip
    return from_pixels(y, x)
