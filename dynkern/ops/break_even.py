"""The table of measured break-even points: which kernel a ternary layer with activations of 8 bits runs, and when.

``ternary_break_even.json`` holds, for each instruction set, rows with the keys ``rows``, ``weights``, ``kernel`` and
``zeros``: for calls of at least so many rows on weights of at least so many entries, ``kernel`` runs where at least
that share of the entries is zero, and the dense kernel elsewhere. Of several rows that apply the last counts.
``bench/measure_break_even.py`` measures it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from dynkern import _C

FILE = Path(__file__).with_name("ternary_break_even.json")


class BreakEven(TypedDict):
    """One row of the table."""

    rows: int
    weights: int
    kernel: str
    zeros: float


def load(path: Path = FILE) -> dict[str, list[BreakEven]]:
    """The tables by instruction set."""
    tables: dict[str, list[BreakEven]] = json.loads(path.read_text())
    return tables


def install(tables: dict[str, list[BreakEven]]) -> None:
    """Hand the tables to the native code."""
    for isa, table in tables.items():
        _C.set_ternary_break_even(isa, [(row["rows"], row["weights"], row["kernel"], row["zeros"]) for row in table])


def kernel_for(rows: int, weights: int, zeros: float) -> str:
    """The kernel that runs a call of ``rows`` rows (pixels of an image) on so many weights with that share of zeros."""
    return _C.ternary_kernel(rows, weights, zeros)


# The share of zeros from which the engine's look-ups in place beat its dense convolution of bytes, by instruction set;
# without byte permutations they never do.
IN_PLACE = {"avx512_vbmi": 0.65}


def skips_in_place(zeros: float) -> bool:
    """Whether a convolution of the engine skips zeros, with that share of them, for the instruction set in use."""
    return zeros >= IN_PLACE.get(_C.isa(), 2.0)


TABLES = load()
