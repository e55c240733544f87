"""Latency of ternary layers against zeros, by pytest-benchmark: ``pytest bench/bench_sparsity.py --benchmark-only``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dynkern.bench.cases import Point

SUITE = "sparsity"


@pytest.mark.parametrize("variant", ["dynkern", "torch_dense", "torch_sparse"])
def test_layer(timed: Callable[[Point, str], None], point: Point, variant: str) -> None:
    """One layer with one share of zeros."""
    timed(point, variant)
