"""``python -m dynkern tune``: measures configurations on the card at hand and keeps the best in the user's cache."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dynkern.ops import TernaryWeight
from dynkern.ops.gpu import configs
from dynkern.ops.gpu.configs import Config, Device, Layer, Row, Table
from dynkern.ops.gpu.dispatch import why_cuda_is_off
from dynkern.usage import UsageError, asked

# Seconds of one call: of a configuration, or with None of PyTorch; at the full width, or (False) at a quarter of it.
Measure = Callable[[Layer, Config | None, bool], float]

_BLOCKS = ((64, 32), (64, 64), (128, 32), (128, 64), (128, 128))
_SHAPES = ((64, 3, 56), (128, 3, 28), (256, 3, 14), (512, 3, 7), (256, 1, 56), (512, 1, 28))
_MATRICES = ((4096, 4096), (8192, 8192), (28672, 8192))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``dynkern tune``."""
    parser.add_argument("--budget", type=float, default=300.0, metavar="SECONDS", help="default %(default)g")
    parser.add_argument("--out", type=Path, metavar="FILE", help="instead of the file in the user's cache")


def run(options: argparse.Namespace) -> int:
    """Carry the command out; returns the exit code."""
    if not options.budget > 0:
        raise UsageError(f"--budget: expected seconds above 0, got {options.budget}")
    if not torch.cuda.is_available():
        raise UsageError(f"tune: needs a CUDA device, and there is none: {why_cuda_is_off()}")
    device = configs._device(torch.cuda.current_device())
    end = time.monotonic() + options.budget
    table = tune(device, layers(), on_card, lambda: end - time.monotonic())
    path = options.out or configs.user_table(device)
    with asked("--out"):
        save(table, path)
    configs.forget()
    print(f"wrote {len(table.rows)} rows for {device.name} to {path}")
    return 0


def layers() -> Iterator[Layer]:
    """What is tuned: the layers of ResNets at batch 128, and square and long matrices for few and many rows."""
    for channels, side, image in _SHAPES:
        for op in ("sliced_conv2d", "ternary_conv2d"):
            yield Layer(op, "float16", channels, channels, side**2, 128 * image**2, True)
    for outputs, inputs in _MATRICES:
        for rows in (16, 64, 4096):
            yield Layer("ternary_linear", "bfloat16", outputs, inputs, 1, rows, True)


def candidates(layer: Layer) -> Iterator[Config]:
    """The configurations that are tried for ``layer``; all of four warps or, for large tiles, eight."""
    ternary = layer.op.startswith("ternary")
    few = layer.pixels <= 16
    for block_p, block_o in ((16, 32), (16, 64), (16, 128)) if few else _BLOCKS:
        for block_k in ((128, 256) if few else (128,)) if ternary else (32, 64):
            for stages in (3, 4):
                yield Config(block_p, block_o, block_k, 8 if block_p * block_o >= 128 * 128 else 4, stages)


def tune(device: Device, wanted: Iterator[Layer], measure: Measure, left: Callable[[], float]) -> Table:
    """The best row for every layer, as long as ``left()`` seconds are left.

    ``wide`` is the best at the full width, ``narrow`` at a quarter of it. Both are None, so that PyTorch runs, where it
    is faster at both. A configuration that fails is one that is not chosen.
    """
    rows = []
    for layer in wanted:
        if left() <= 0:
            break
        best: list[tuple[Config, float, float]] = []
        for full in (True, False):
            times = {config: _seconds(measure, layer, config, full) for config in candidates(layer)}
            # Both widths of a ternary layer read one layout of its weight, hence blocks of one size.
            if best and layer.op.startswith("ternary"):
                times = {c: t for c, t in times.items() if c.block_k == best[0][0].block_k}
            config = min(times, key=lambda c: times[c])
            best.append((config, times[config], measure(layer, None, full)))
        lost = all(ours >= theirs for _, ours, theirs in best)
        around = (layer.pixels // 2 + 1, 2 * layer.pixels)
        rows.append(
            Row(
                layer.op, _alike(layer.dtype), layer.last, _exactly(layer.outputs), _exactly(layer.inputs),
                _exactly(layer.taps), around, None if lost else best[0][0], None if lost else best[1][0], "tuned",
            )
        )  # fmt: skip
    return Table(device.name, device.capability, tuple(rows))


def save(table: Table, path: Path) -> None:
    """Write ``table``; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(configs.dump(table))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def on_card(layer: Layer, config: Config | None, full: bool) -> float:
    """Seconds of one call on the current device, in a graph and on data beyond the cache."""
    from dynkern.bench import gpu_timer

    make, nbytes = _calls(layer, config, full)
    calls = [make() for _ in range(gpu_timer.copies(nbytes))]
    with torch.inference_mode():
        sample = gpu_timer.interleave({"one": gpu_timer.graph(calls)}, len(calls), 5)["one"]
    return sample.quantile(0.5)


def _calls(
    layer: Layer, config: Config | None, full: bool, device: str = "cuda"
) -> tuple[Callable[[], Callable[[], Any]], int]:
    """What makes one call on data of its own, and how many bytes that data has."""
    from dynkern.ops.sliced_conv2d import triton as sliced
    from dynkern.ops.ternary_conv2d import triton as ternary
    from dynkern.ops.ternary_linear import triton as linear

    share = 1 if full else 4
    c, o = layer.inputs // share, layer.outputs // share
    kind: dict[str, Any] = {"device": device, "dtype": getattr(torch, layer.dtype)}
    how = None if config is None else (config, 8 if full else 0)
    if layer.op == "ternary_linear":

        def make_linear() -> Callable[[], Any]:
            x = torch.randn(layer.pixels, c, **kind)
            signs = torch.randint(-1, 2, (layer.outputs, layer.inputs), device=device, dtype=torch.int8)
            if how is None:
                dense = signs[:o, :c].to(x.dtype)
                return lambda: F.linear(x, dense)
            packed = TernaryWeight.pack(signs).packed
            return lambda: linear.run(x, packed, None, None, layer.inputs, o, None, None, config=how)

        return make_linear, layer.outputs * layer.inputs // 4
    side = round(layer.taps**0.5)
    image = round((layer.pixels / 128) ** 0.5)
    pad = side // 2
    geometry = (1, 1, pad, pad, pad, pad, 1, 1)

    def make() -> Callable[[], Any]:
        last = torch.channels_last
        x = torch.randn(128, c, image, image, **kind).contiguous(memory_format=last)
        weight = torch.randn(layer.outputs, layer.inputs, side, side, **kind).contiguous(memory_format=last)
        if how is None:
            plain = weight[:o, :c].contiguous(memory_format=last)
            return lambda: F.conv2d(x, plain, padding=pad)
        if layer.op == "ternary_conv2d":
            packed = TernaryWeight.from_float(weight, 0.5).packed
            args = (x, packed, None, None, weight.shape, geometry, 1, o, None, None)
            return lambda: ternary.run(*args, config=how)
        return lambda: sliced.run(x, weight, None, geometry, 1, o, None, None, config=how)

    return make, 2 * layer.pixels * (c + o)


def _seconds(measure: Measure, layer: Layer, config: Config, full: bool) -> float:
    try:
        return measure(layer, config, full)
    # Too much shared memory, say: known only when the card is asked.
    except Exception:
        return float("inf")


def _alike(dtype: str) -> tuple[str, ...]:
    return ("float16", "bfloat16") if dtype in ("float16", "bfloat16") else (dtype,)


def _exactly(number: int) -> tuple[int, int]:
    return number, number
