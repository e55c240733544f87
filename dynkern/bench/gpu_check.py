"""Every GPU kernel once, on small odd shapes, against the reference: for compute-sanitizer, which is slow."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern import _C, ops
from dynkern.ops import TernaryWeight
from dynkern.ops.ternary_linear import reference

# Rows, inputs, outputs: tails in all directions, and blocks that share results.
SHAPES = ((1, 515, 130), (3, 1000, 77), (20, 300, 150), (40, 300, 150), (130, 1030, 70))


def check(device: str = "cuda") -> None:
    """Raises ``AssertionError`` where a result is wrong."""
    for rows, inputs, outputs in SHAPES:
        signs = torch.randint(0, 2, (outputs, inputs)) * 2 - 1
        weight = TernaryWeight.pack(torch.where(torch.rand(outputs, inputs) < 0.9, 0, signs).float().to(device))
        whole = torch.randint(-127, 128, (rows, inputs), device=device)
        if _C.cuda_architectures is not None and device == "cuda":
            _forms(whole, weight)
        for dtype in (torch.bfloat16, torch.float16):
            x = torch.randn(rows, inputs, device=device).to(dtype)
            args = (x, weight.packed, None, None, inputs, None, None, None)
            _close(ops.ternary_linear(x, weight), reference.ternary_linear(*args))
            y = ops.ternary_linear(x, weight, activation="int8")
            assert torch.equal(y, reference.ternary_linear_int8(*args, None, True)), "int8 is not exact"
    _convolutions(device)


def _forms(whole: Tensor, weight: TernaryWeight) -> None:
    """Each form of the CUDA kernels on whole numbers far below 2**24, whose sums are exact in any order."""
    from dynkern.ops.ternary_linear import cuda

    expected = (whole.double() @ weight.signs().double().t()).float()
    for dtype, forms in (
        (torch.int8, ("dense", "lists", "sparse8")),
        (torch.bfloat16, ("dense", "lists", "sparse16")),
        (torch.float16, ("dense", "lists", "sparse16")),
    ):
        for form in forms:
            y = torch.full(expected.shape, float("nan"), device=whole.device)
            cuda.run_rows(whole.to(dtype), weight.packed, None, None, whole.shape[1], y, form=form)
            assert torch.equal(y, expected), f"{form} of {dtype} is wrong at {tuple(whole.shape)}"


def _convolutions(device: str) -> None:
    dense = torch.randn(40, 24, 3, 3, device=device, dtype=torch.float16) / 15
    for form in (torch.contiguous_format, torch.channels_last):
        for channels, outputs in ((24, 40), (7, 11)):
            x = torch.randn(2, channels, 9, 11, device=device, dtype=torch.float16).contiguous(memory_format=form)
            want = torch.nn.functional.conv2d(x.float(), dense[:outputs, :channels].float(), padding=1)
            _close(ops.sliced_conv2d(x, dense, padding=1, out_channels=outputs), want)
            weight = TernaryWeight.from_float(dense, 0.1)
            want = torch.nn.functional.conv2d(x.float(), weight.unpack()[:outputs, :channels], padding=1)
            _close(ops.ternary_conv2d(x, weight, padding=1, out_channels=outputs), want)


def _close(y: Tensor, want: Tensor) -> None:
    error = (y.float() - want.float()).abs().max()
    assert error <= 1e-2 * want.float().abs().max(), f"off by {error:.1e}"
