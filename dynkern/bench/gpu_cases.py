"""What is measured on a GPU: every case with its variants and the result that they are held against.

Baselines: cuDNN and cuBLAS on contiguous, physically sliced weights; the slice taken in every call, as slimmable
networks do it; the dense bfloat16 matrix for ternary layers; gemlite's kernels for two bits where it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynkern as dk
from dynkern import _C
from dynkern.bench import gpu_peers
from dynkern.ops.quantize import FLOATS, Activation

OURS = "dynkern"
WIDTHS = (0.25, 0.5, 0.75, 1.0)
ZEROS = 0.9
# Inputs, outputs, kernel, stride, image: the different convolutions of ResNet-18 and ResNet-50 at 224x224.
CONVOLUTIONS = (
    (64, 64, 3, 1, 56), (256, 64, 1, 1, 56), (128, 128, 3, 1, 28), (256, 256, 3, 1, 14), (512, 512, 3, 1, 7),
    (64, 128, 3, 2, 56), (64, 256, 1, 1, 56), (512, 128, 1, 1, 28), (1024, 256, 1, 1, 14), (512, 2048, 1, 1, 7),
)  # fmt: skip
# Outputs, inputs, rows, activations. Those that a target is about come first.
MATRICES = (
    (8192, 28672, 1, "bfloat16"), (4096, 4096, 1, "bfloat16"), (8192, 28672, 16, "bfloat16"),
    (8192, 28672, 256, "int8"), (8192, 28672, 64, "bfloat16"), (4096, 4096, 4096, "bfloat16"),
    (8192, 28672, 1, "int8"), (4096, 4096, 16, "bfloat16"), (4096, 4096, 64, "bfloat16"), (4096, 4096, 256, "int8"),
)  # fmt: skip
TERNARY_CONVOLUTIONS = ((80, 32), (160, 16), (320, 8))
# Outputs, inputs, rows.
AGAINST_GEMLITE = ((8192, 28672, 1), (8192, 28672, 16), (8192, 28672, 64), (4096, 4096, 1), (4096, 4096, 16))
MODELS = (("resnet18", 128, 224), ("resnet50", 128, 224), ("resnet20", 1, 32))


@dataclass(frozen=True)
class Variant:
    """One way to compute a case: a function of a copy of its data."""

    name: str
    call: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Case:
    """One computation.

    Attributes:
        suite, name, value: what it is; the width, or the share of zeros.
        data: makes one copy of inputs and weights, always of the same numbers.
        nbytes: of one copy.
        variants: the first is dynkern's as users call it, the others what it is compared with.
        reference: the result in higher precision.
        tolerance: the largest error, relative to the largest result.
    """

    suite: str
    name: str
    value: float
    data: Callable[[], Any]
    nbytes: int
    variants: tuple[Variant, ...]
    reference: Callable[[Any], Tensor]
    tolerance: float


@dataclass(frozen=True)
class Place:
    """Where a suite runs: a few cases if ``quick``, untimed and each variant of users' alone if ``dry``."""

    device: str = "cuda"
    quick: bool = False
    dry: bool = False
    small: bool = False

    def size(self, number: int, least: int = 8) -> int:
        """``number``, or a sixteenth of it where shapes shall be small."""
        return max(least, number // 16) if self.small else number


def width_cases(place: Place) -> Iterator[Case]:
    """Sliced convolutions, float16, channels last, batch 128."""
    for inputs, outputs, side, stride, image in CONVOLUTIONS[: 2 if place.quick else None]:
        full = (place.size(outputs), place.size(inputs), side, side)
        name = f"conv {inputs} to {outputs}, {side}x{side}, stride {stride}, {image}x{image}"
        for width in WIDTHS:
            yield _convolution(place, name, full, stride, place.size(image), width)


def _convolution(
    place: Place, name: str, full: tuple[int, int, int, int], stride: int, image: int, width: float
) -> Case:
    batch = place.size(128, 2)
    o, c = round(full[0] * width), round(full[1] * width)
    size: dict[str, Any] = {"stride": stride, "padding": full[2] // 2}
    last = torch.channels_last

    def data() -> dict[str, Tensor]:
        gen = torch.Generator(device=place.device).manual_seed(0)
        kind: dict[str, Any] = {"generator": gen, "device": place.device, "dtype": torch.float16}
        weight = torch.randn(full, **kind).div_((full[1] * full[2] ** 2) ** 0.5)
        x = torch.randn(batch, c, image, image, **kind)
        found = {"x": x, "weight": weight, "slice": weight[:o, :c]}
        return {key: value.contiguous(memory_format=last) for key, value in found.items()}

    variants = (
        Variant(OURS, lambda d: dk.ops.sliced_conv2d(d["x"], d["weight"], out_channels=o, **size)),
        Variant("cuDNN, contiguous", lambda d: F.conv2d(d["x"], d["slice"], **size)),
        Variant("cuDNN, sliced", lambda d: F.conv2d(d["x"], d["weight"][:o, :c], **size)),
    )
    reference = lambda d: F.conv2d(d["x"].float().cpu(), d["slice"].float().cpu(), **size)  # noqa: E731
    nbytes = 2 * batch * image**2 * (c + o // stride**2)
    return Case("width", name, width, data, nbytes, variants, reference, 4e-3)


def sparsity_cases(place: Place) -> Iterator[Case]:
    """Ternary layers at 90 % zeros: what the dispatcher takes, and each form that it could take."""
    for outputs, inputs, rows, activation in MATRICES[: 2 if place.quick else None]:
        name = f"linear {inputs} to {outputs}, {rows} rows, {activation}"
        shape = (place.size(outputs), place.size(inputs), place.size(rows, 1))
        yield _matrix(place, "sparsity", name, *shape, activation == "int8", _forms(place, rows, activation == "int8"))
    for channels, image in TERNARY_CONVOLUTIONS[: 1 if place.quick else None]:
        c, pixels = place.size(channels), place.size(image)
        for activation in ("bfloat16", "int8"):
            name = f"conv {channels} to {channels}, {image}x{image}, {activation}"
            yield _ternary_convolution(place, name, c, pixels, activation == "int8")


def gemlite_cases(place: Place) -> Iterator[Case]:
    """Ternary layers at 90 % zeros against gemlite's, whose weights take two bits too."""
    for outputs, inputs, rows in AGAINST_GEMLITE[: 1 if place.quick else None]:
        name = f"linear {inputs} to {outputs}, {rows} rows, bfloat16"
        shape = (place.size(outputs), place.size(inputs), place.size(rows, 1))
        theirs = Variant("gemlite, 1.58 bits", lambda d: d["gemlite"](d["x"]))
        layer = {"gemlite": lambda d: gpu_peers.bit_linear(d["dense"])}
        yield _matrix(place, "gemlite", name, *shape, False, (theirs,), layer)


def signs_of(place: Place, shape: tuple[int, ...]) -> Tensor:
    """Random signs, the same for the same shape."""
    gen = torch.Generator(device=place.device).manual_seed(0)
    draw = torch.rand(shape, generator=gen, device=place.device)
    return (draw < (1 - ZEROS) / 2).to(torch.int8) - (draw > 1 - (1 - ZEROS) / 2).to(torch.int8)


def _matrix(
    place: Place, suite: str, name: str, o: int, i: int, m: int, int8: bool, others: tuple[Variant, ...],
    more: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Case:  # fmt: skip
    def data() -> dict[str, Any]:
        signs = signs_of(place, (o, i))
        gen = torch.Generator(device=place.device).manual_seed(1)
        x = torch.randn(m, i, generator=gen, device=place.device, dtype=torch.bfloat16)
        found = {"x": x, "packed": dk.TernaryWeight.pack(signs), "dense": signs.to(torch.bfloat16)}
        return found | {key: make(found) for key, make in (more or {}).items()}

    activation = "int8" if int8 else "float32"
    variants = (
        Variant(OURS, lambda d: dk.ops.ternary_linear(d["x"], d["packed"], activation=activation)),
        Variant("cuBLAS, bfloat16", lambda d: F.linear(d["x"], d["dense"])),
        *others,
    )
    reference = lambda d: F.linear(d["x"].float().cpu(), d["dense"].float().cpu())  # noqa: E731
    # Copies enough that even lists of the nonzeros do not stay in the cache.
    nbytes = o * i // 8 + 2 * m * (o + i)
    return Case(suite, name, ZEROS, data, nbytes, variants, reference, 2e-2 if int8 else 8e-3)


def _forms(place: Place, rows: int, int8: bool) -> tuple[Variant, ...]:
    """Each backend and form that takes such a call, by its own entry: for the table that chooses among them."""
    if place.dry:
        return ()
    how = Activation(True) if int8 else FLOATS
    forms = ["dense", *(["lists"] if rows <= 4 else []), *(["sparse8" if int8 else "sparse16"] if rows > 16 else [])]
    found = [Variant(f"{OURS}, Triton", partial(_by_triton, how))]
    if _C.cuda_architectures is not None:
        found += [Variant(f"{OURS}, CUDA {form}", partial(_by_cuda, how, form)) for form in forms]
    return tuple(found)


def _by_triton(how: Activation, d: Any) -> Tensor:
    from dynkern.ops.ternary_linear import triton

    w = d["packed"]
    return triton.run(d["x"], w.packed, w.scale, None, w.shape[1], None, None, None, how)


def _by_cuda(how: Activation, form: str, d: Any) -> Tensor:
    from dynkern.ops.ternary_linear import cuda

    w = d["packed"]
    return cuda.run(d["x"], w.packed, w.scale, None, w.shape[1], None, None, None, how, form=form)


def _ternary_convolution(place: Place, name: str, channels: int, pixels: int, int8: bool) -> Case:
    batch = place.size(128, 2)

    def data() -> dict[str, Any]:
        signs = signs_of(place, (channels, channels, 3, 3))
        gen = torch.Generator(device=place.device).manual_seed(1)
        x = torch.randn(batch, channels, pixels, pixels, generator=gen, device=place.device, dtype=torch.bfloat16)
        last = torch.channels_last
        dense = signs.to(torch.bfloat16).contiguous(memory_format=last)
        return {"x": x.contiguous(memory_format=last), "packed": dk.TernaryWeight.pack(signs), "dense": dense}

    activation = "int8" if int8 else "float32"
    variants = (
        Variant(OURS, lambda d: dk.ops.ternary_conv2d(d["x"], d["packed"], padding=1, activation=activation)),
        Variant("cuDNN, bfloat16", lambda d: F.conv2d(d["x"], d["dense"], padding=1)),
    )
    reference = lambda d: F.conv2d(d["x"].float().cpu(), d["dense"].float().cpu(), padding=1)  # noqa: E731
    nbytes = 4 * batch * channels * pixels**2
    return Case("sparsity", name, ZEROS, data, nbytes, variants, reference, 2e-2 if int8 else 8e-3)


def model_cases(place: Place) -> Iterator[Case]:
    """Whole networks, float16, channels last: the drop-in modules and each sub-net extracted."""
    for name, batch, image in (("resnet20", 1, 32),) if place.quick or place.small else MODELS:
        torch.manual_seed(0)
        net = dk.slim(getattr(dk.models, name)(), subnets=WIDTHS)
        dk.calibrate_bn(net, [torch.randn(8, 3, image, image)])
        net.eval()
        exact = {width: dk.extract(net, width).eval() for width in WIDTHS}
        net = net.to(place.device, torch.float32 if place.device == "cpu" else torch.float16)
        for parameter in (p for p in net.parameters() if p.dim() == 4):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        for width in WIDTHS:
            plain = dk.extract(net, width).eval()
            yield _model(f"{name}, batch {batch}", place, net, plain, exact[width], width, (batch, 3, image, image))


def _model(
    name: str, place: Place, net: nn.Module, plain: nn.Module, exact: nn.Module, width: float, shape: tuple[int, ...]
) -> Case:
    like = next(plain.parameters())

    def data() -> dict[str, Tensor]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return {"x": x.to(place.device, like.dtype).contiguous(memory_format=torch.channels_last)}

    def ours(d: Any) -> Tensor:
        with dk.using(net, width):
            y: Tensor = net(d["x"])
        return y

    # Some images are enough to tell whether a network is right.
    few = 8
    variants = (Variant(OURS, ours), Variant("PyTorch, extracted", lambda d: plain(d["x"])))
    nbytes = 2 * math.prod(shape) + 2 * sum(p.numel() for p in plain.parameters())
    return Case("models", name, width, data, nbytes, variants, lambda d: exact(d["x"][:few].float().cpu()), 3e-2)


SUITES: Mapping[str, Callable[[Place], Iterator[Case]]] = {
    "width": width_cases,
    "sparsity": sparsity_cases,
    "gemlite": gemlite_cases,
    "models": model_cases,
}
