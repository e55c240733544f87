"""Latency against width, by pytest-benchmark: ``pytest bench/bench_width.py --benchmark-only``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dynkern.bench.cases import Point

SUITE = "width"


@pytest.mark.parametrize("variant", ["dynkern", "engine", "eager_sliced", "eager_extracted"])
def test_network(timed: Callable[[Point, str], None], point: Point, variant: str) -> None:
    """One network at one width."""
    timed(point, variant)
