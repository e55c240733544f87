"""What is measured on a GPU: cases, variants, and the check that comes before every figure.

Baselines: cuDNN and cuBLAS on contiguous, physically sliced weights, in a CUDA graph and eager; the slice taken in
every call, as slimmable networks do it; the dense bfloat16 matrix for ternary layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynkern as dk
from dynkern.bench import gpu_timer
from dynkern.bench.run import digits, first_line

OURS = "dynkern"
ROUNDS, QUICK_ROUNDS = 15, 5
WIDTHS = (0.25, 0.5, 0.75, 1.0)
# Inputs, outputs, kernel, stride, image: the different convolutions of ResNet-18 and ResNet-50 at 224x224.
CONVOLUTIONS = (
    (64, 64, 3, 1, 56), (128, 128, 3, 1, 28), (256, 256, 3, 1, 14), (512, 512, 3, 1, 7), (64, 128, 3, 2, 56),
    (256, 64, 1, 1, 56), (64, 256, 1, 1, 56), (512, 128, 1, 1, 28), (1024, 256, 1, 1, 14), (512, 2048, 1, 1, 7),
)  # fmt: skip
# Outputs, inputs, rows, activations.
MATRICES = (
    (28672, 8192, 16, "bfloat16"), (4096, 4096, 16, "bfloat16"), (28672, 8192, 64, "bfloat16"),
    (4096, 4096, 64, "bfloat16"), (4096, 4096, 256, "int8"), (4096, 4096, 4096, "bfloat16"),
)  # fmt: skip
TERNARY_CONVOLUTIONS = ((80, 32), (160, 16), (320, 8))
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
        variants: the first is dynkern's, the second what it is compared with.
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
class Row:
    """One variant of one case, eager or in a graph; no ``median_s`` where nothing was timed: ``reason`` says why."""

    suite: str
    case: str
    value: float
    variant: str
    mode: str
    status: str
    reason: str | None = None
    error: float | None = None
    tolerance: float | None = None
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class Place:
    """Where a suite runs. A dry run checks results on the CPU, with small shapes, and times nothing."""

    device: str = "cuda"
    quick: bool = False
    dry: bool = False

    def size(self, number: int, least: int = 8) -> int:
        """``number``, or a sixteenth of it in a dry run."""
        return max(least, number // 16) if self.dry else number


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
    batch = 2 if place.dry else 128
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
    """Ternary layers at 90 % zeros."""
    zeros = 0.9
    for outputs, inputs, rows, activation in MATRICES[: 2 if place.quick else None]:
        o, i, m = place.size(outputs), place.size(inputs), place.size(rows)
        yield _matrix(place, f"linear {inputs} to {outputs}, {rows} rows, {activation}", o, i, m, activation, zeros)
    for channels, image in TERNARY_CONVOLUTIONS[: 1 if place.quick else None]:
        c, pixels = place.size(channels), place.size(image)
        yield _ternary_convolution(place, f"conv {channels} to {channels}, {image}x{image}", c, pixels, zeros)


def _signs(place: Place, shape: tuple[int, ...], zeros: float) -> Tensor:
    gen = torch.Generator(device=place.device).manual_seed(0)
    draw = torch.rand(shape, generator=gen, device=place.device)
    return (draw < (1 - zeros) / 2).to(torch.int8) - (draw > 1 - (1 - zeros) / 2).to(torch.int8)


def _matrix(place: Place, name: str, o: int, i: int, m: int, activation: str, zeros: float) -> Case:
    def data() -> dict[str, Any]:
        signs = _signs(place, (o, i), zeros)
        gen = torch.Generator(device=place.device).manual_seed(1)
        x = torch.randn(m, i, generator=gen, device=place.device, dtype=torch.bfloat16)
        return {"x": x, "packed": dk.TernaryWeight.pack(signs), "dense": signs.to(torch.bfloat16)}

    def run(d: Any) -> Tensor:
        if activation == "int8" and not place.dry:
            from dynkern.ops.ternary_linear import triton

            w = d["packed"]
            return triton.run(d["x"], w.packed, w.scale, None, i, None, None, None, activation="int8")
        return dk.ops.ternary_linear(d["x"], d["packed"])

    variants = (Variant(OURS, run), Variant("cuBLAS, bfloat16", lambda d: F.linear(d["x"], d["dense"])))
    reference = lambda d: F.linear(d["x"].float().cpu(), d["dense"].float().cpu())  # noqa: E731
    # Copies enough that even the packed weights do not stay in the cache.
    return Case("sparsity", name, zeros, data, o * i // 4, variants, reference, 2e-2 if activation == "int8" else 8e-3)


def _ternary_convolution(place: Place, name: str, channels: int, pixels: int, zeros: float) -> Case:
    batch = 2 if place.dry else 128

    def data() -> dict[str, Any]:
        signs = _signs(place, (channels, channels, 3, 3), zeros)
        gen = torch.Generator(device=place.device).manual_seed(1)
        x = torch.randn(batch, channels, pixels, pixels, generator=gen, device=place.device, dtype=torch.bfloat16)
        last = torch.channels_last
        dense = signs.to(torch.bfloat16).contiguous(memory_format=last)
        return {"x": x.contiguous(memory_format=last), "packed": dk.TernaryWeight.pack(signs), "dense": dense}

    variants = (
        Variant(OURS, lambda d: dk.ops.ternary_conv2d(d["x"], d["packed"], padding=1)),
        Variant("cuDNN, bfloat16", lambda d: F.conv2d(d["x"], d["dense"], padding=1)),
    )
    reference = lambda d: F.conv2d(d["x"].float().cpu(), d["dense"].float().cpu(), padding=1)  # noqa: E731
    return Case("sparsity", name, zeros, data, 4 * batch * channels * pixels**2, variants, reference, 8e-3)


def model_cases(place: Place) -> Iterator[Case]:
    """Whole networks, float16, channels last: the drop-in modules and each sub-net extracted."""
    for name, batch, image in (("resnet20", 1, 32),) if place.quick or place.dry else MODELS:
        torch.manual_seed(0)
        net = dk.slim(getattr(dk.models, name)(), subnets=WIDTHS)
        dk.calibrate_bn(net, [torch.randn(8, 3, image, image)])
        net.eval()
        exact = {width: dk.extract(net, width).eval() for width in WIDTHS}
        net = net.to(place.device, torch.float32 if place.dry else torch.float16)
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

    variants = (Variant(OURS, ours), Variant("PyTorch, extracted", lambda d: plain(d["x"])))
    nbytes = 2 * math.prod(shape) + 2 * sum(p.numel() for p in plain.parameters())
    return Case("models", name, width, data, nbytes, variants, lambda d: exact(d["x"].float().cpu()), 3e-2)


SUITES: Mapping[str, Callable[[Place], Iterator[Case]]] = {
    "width": width_cases,
    "sparsity": sparsity_cases,
    "models": model_cases,
}


def measure(case: Case, place: Place) -> list[Row]:
    """The rows of one case: every variant is checked, then timed, eager and in a graph."""
    first = case.data()
    with torch.inference_mode():
        want = case.reference(first)
    fine: dict[Variant, tuple[dict[str, Any], float]] = {}
    rows = []
    for variant in case.variants:
        base: dict[str, Any] = {"suite": case.suite, "case": case.name, "value": case.value, "variant": variant.name}
        try:
            with torch.inference_mode():
                y = variant.call(first).float().cpu()
            error = float((y - want).abs().max() / want.abs().max())
        except Exception as failure:
            rows.append(Row(**base, mode="both", status="failed", reason=first_line(failure)))
            continue
        if not error <= case.tolerance:
            reason = f"off by {error:.1e} of the largest result"
            rows.append(Row(**base, mode="both", status="wrong", reason=reason, tolerance=case.tolerance))
        elif place.dry:
            rows.append(Row(**base, mode="both", status="ok", reason="not measured", error=digits(error)))
        else:
            fine[variant] = (base, error)
    if fine:
        rows += _timed(case, place, fine, first)
    return rows


def _timed(case: Case, place: Place, fine: Mapping[Variant, tuple[dict[str, Any], float]], first: Any) -> list[Row]:
    data = [first, *(case.data() for _ in range(gpu_timer.copies(case.nbytes) - 1))]
    rows = []
    for mode, make in (("eager", gpu_timer.eager), ("graph", gpu_timer.graph)):
        ready, failed = {}, {}
        with torch.inference_mode():
            for variant in fine:
                try:
                    ready[variant] = make([lambda d=d, v=variant: v.call(d) for d in data])  # type: ignore[misc]
                except Exception as failure:
                    failed[variant] = first_line(failure)
            named = {v.name: run for v, run in ready.items()}
            rounds = QUICK_ROUNDS if place.quick else ROUNDS
            samples = gpu_timer.interleave(named, len(data), rounds) if named else {}
        for variant, (base, error) in fine.items():
            if variant in failed:
                rows.append(Row(**base, mode=mode, status="failed", reason=failed[variant]))
                continue
            sample = samples[variant.name]
            ours = samples.get(OURS)
            rows.append(
                Row(
                    **base, mode=mode, status="ok", error=digits(error), tolerance=case.tolerance,
                    median_s=digits(sample.quantile(0.5)), p20_s=digits(sample.quantile(0.2)),
                    p80_s=digits(sample.quantile(0.8)),
                    speedup=None if ours is None else digits(gpu_timer.ratio(ours, sample)),
                )
            )  # fmt: skip
    return rows


def run(suite: str, place: Place, left: Callable[[], float]) -> list[dict[str, Any]]:
    """The rows of a suite, as long as ``left()`` seconds are left; the cases for which none were are rows too."""
    rows = []
    for case in SUITES[suite](place):
        if left() <= 0:
            rows.append(Row(case.suite, case.name, case.value, OURS, "both", "failed", reason="no time was left"))
            continue
        try:
            rows += measure(case, place)
        except Exception as failure:
            rows.append(Row(case.suite, case.name, case.value, OURS, "both", "failed", reason=first_line(failure)))
        if not place.dry:
            torch.cuda.empty_cache()
    return [asdict(row) for row in rows]
