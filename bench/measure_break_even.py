"""Measures where skipping zeros begins to pay, and writes the table that the package ships and chooses by.

``python bench/measure_break_even.py [--seconds 0.02] [FILE]``: for every instruction set, number of rows and size of
weight, the share of zeros from which the faster of the kernels that skip beats the dense one. Pin it to one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dynkern import _C
from dynkern.ops import TernaryWeight, break_even
from dynkern.ops.ternary_linear import int8

ROWS = (1, 2, 4, 8, 16, 32, 64)
SIDES = (128, 512, 2048)
ZEROS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
DENSE, SKIPPING = "ternary_dense", ("ternary_lookup", "ternary_short_lists")


def best(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The shortest time of each, in turn: other programs can only make a sample longer."""
    times = {name: float("inf") for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(calls)
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name] = min(times[name], time.perf_counter() - start)
        rounds += 1
    return times


def entry(rows: int, side: int, seconds: float) -> dict | None:
    """The row of the table for that many rows and a square weight; None if nothing beats the dense kernel."""
    x = torch.randn(rows, side)
    found: tuple[str, float] | None = None
    for zeros in reversed(ZEROS):
        draws = torch.rand(side, side)
        signs = torch.where(draws < zeros, 0.0, torch.where(draws < (1 + zeros) / 2, 1.0, -1.0))
        weight = TernaryWeight.pack(signs)
        kernels = [k for k in (DENSE, *SKIPPING) if k != "ternary_lookup" or _C.isa() == "avx512_vbmi"]

        def call(kernel: str, packed: torch.Tensor = weight.packed) -> Callable[[], object]:
            return lambda: int8.run(x, packed, None, None, side, None, None, None, None, True, kernel)

        times = best({kernel: call(kernel) for kernel in kernels}, seconds)
        fastest = min(times, key=lambda kernel: times[kernel])
        if fastest == DENSE or (found and found[0] != fastest):
            break
        found = fastest, zeros
    return None if found is None else {"rows": rows, "weights": side * side, "kernel": found[0], "zeros": found[1]}


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=break_even.FILE)
    parser.add_argument("--seconds", type=float, default=0.02, help="for every kernel at every point")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tables = {}
    for isa in _C.isas():
        _C.force_isa(isa)
        # Below the smallest weight the same holds as for it; where nothing is said, the dense kernel runs.
        table = []
        for rows in ROWS:
            for side in SIDES:
                row = entry(rows, side, options.seconds) or {
                    "rows": rows, "weights": side * side, "kernel": DENSE, "zeros": 1.0,
                }  # fmt: skip
                if side == SIDES[0]:
                    row["weights"] = 0
                table.append(row)
                print(isa, row, flush=True)
        tables[isa] = table
    lines = [
        f'"{isa}": [\n' + ",\n".join("  " + json.dumps(row) for row in table) + "\n]" for isa, table in tables.items()
    ]
    options.file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
