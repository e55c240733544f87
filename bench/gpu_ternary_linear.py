"""Ternary linear layers on a CUDA card: each form of the weight against cuBLAS in bfloat16, in one run.

    python bench/gpu_ternary_linear.py [--zeros 0.9] [--json FILE]
    compute-sanitizer python bench/gpu_ternary_linear.py --check

All variants of a shape are captured in CUDA graphs of some calls each, on weights that are rotated so that together
they exceed the second-level cache; the graphs are replayed in turn, and what is printed are medians of the ratios
within a round. ``--check`` runs every form once on small odd shapes and compares with float64: for compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from dynkern.ops import TernaryWeight
from dynkern.ops.ternary_linear import cuda

# (rows, inputs, outputs), and what issue 6 aims at for the best form.
SHAPES = [(1, 28672, 8192), (1, 4096, 4096), (16, 28672, 8192), (256, 28672, 8192)]
FORMS = {"bfloat16": ("dense", "lists", "sparse16"), "int8": ("dense", "lists", "sparse8")}
ROTATED_BYTES = 256 * 2**20
ROUNDS = 31


def random_weight(outputs: int, inputs: int, zeros: float) -> TernaryWeight:
    signs = torch.randint(0, 2, (outputs, inputs)) * 2.0 - 1
    packed = TernaryWeight.pack(torch.where(torch.rand(outputs, inputs) < zeros, 0.0, signs))
    return TernaryWeight(packed.packed.cuda(), packed.shape)


def captured(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """One graph of all calls, each of which has run before."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def microseconds(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / calls


def runner(x: Tensor, weight: TernaryWeight, form: str) -> Callable[[], object]:
    y = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16, device="cuda")
    return lambda: cuda.run_rows(x, weight.packed, weight.scale, None, weight.shape[1], y, form=form)


def measure(rows: int, inputs: int, outputs: int, zeros: float) -> dict[str, dict[str, float]]:
    # A quarter of a byte per weight is the least that a form reads (but for lists of fewer nonzeros still).
    copies = max(2, -(-ROTATED_BYTES // (outputs * inputs // 4)))
    weights = [random_weight(outputs, inputs, zeros) for _ in range(copies)]
    x = torch.randn(rows, inputs, device="cuda").to(torch.bfloat16)
    int8, _ = cuda.quantize_rows(x)
    dense = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(min(copies, 4))]
    graphs = {"cuBLAS bfloat16": captured([lambda w=w: torch.nn.functional.linear(x, w) for w in dense])}
    counts = {"cuBLAS bfloat16": len(dense)}
    for kind, forms in FORMS.items():
        for form in forms:
            if form == "lists" and rows > 4:
                continue
            name = f"{form}, {kind}"
            graphs[name] = captured([runner(int8 if kind == "int8" else x, w, form) for w in weights])
            counts[name] = copies
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for i in range(ROUNDS + 3):
        for name, graph in graphs.items():
            taken = microseconds(graph, counts[name])
            if i >= 3:
                times[name].append(taken)
    base = times["cuBLAS bfloat16"]
    return {
        name: {
            "microseconds": statistics.median(found),
            "ratio": statistics.median(b / t for b, t in zip(base, found, strict=True)),
        }
        for name, found in times.items()
    }


def check() -> None:
    """Every form on shapes with tails in all directions."""
    for rows, inputs, outputs in [(1, 515, 130), (3, 1000, 77), (20, 300, 150), (40, 300, 150), (130, 1030, 70)]:
        weight = random_weight(outputs, inputs, 0.9)
        x = torch.randint(-128, 128, (rows, inputs), device="cuda").to(torch.int8)
        expected = (x.double() @ weight.signs().double().t()).float()
        for form in FORMS["int8"]:
            y = torch.full((rows, outputs), float("nan"), device="cuda")
            cuda.run_rows(x, weight.packed, None, None, inputs, y, form=form)
            torch.testing.assert_close(y, expected, rtol=0, atol=0)
        half = x.to(torch.bfloat16)
        for form in FORMS["bfloat16"]:
            y = torch.full((rows, outputs), float("nan"), device="cuda")
            cuda.run_rows(half, weight.packed, None, None, inputs, y, form=form)
            torch.testing.assert_close(y, expected, rtol=0, atol=0)  # whole numbers, far below 2**24
    print("all forms are right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zeros", type=float, default=0.9, help="share of zeros among the weights")
    parser.add_argument("--json", help="where to write the results")
    parser.add_argument("--check", action="store_true", help="compare with float64 on odd shapes, and time nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing to measure")
    if options.check:
        check()
        return
    results = {}
    for shape in SHAPES:
        found = results[str(shape)] = measure(*shape, options.zeros)
        print(f"rows, inputs, outputs {shape}, {options.zeros:.0%} zeros, {torch.cuda.get_device_name(0)}")
        for name, numbers in found.items():
            print(f"  {name:<20} {numbers['microseconds']:9.2f} us  {numbers['ratio']:6.2f}x cuBLAS bfloat16")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {"device": torch.cuda.get_device_name(0), "zeros": options.zeros, "results": results}, file, indent=1
            )


if __name__ == "__main__":
    main()
