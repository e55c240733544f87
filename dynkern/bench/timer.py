"""Timing of several variants of one computation, interleaved in one process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Measurement:
    """The samples of every variant; sample ``r`` of each was taken in round ``r``.

    Attributes:
        samples: seconds per call, one number per round.
        calls: how many calls one sample spans.
    """

    samples: Mapping[str, Sequence[float]]
    calls: Mapping[str, int]

    def quantile(self, name: str, share: float) -> float:
        """Seconds per call that ``share`` of the samples do not exceed, interpolated."""
        return float(np.quantile(self.samples[name], share))

    def speedup(self, name: str, baseline: str) -> float:
        """How many times faster ``name`` is than ``baseline``: the median over rounds of the ratio of their times.

        Both samples of a round see the same state of the machine, so the ratio is steadier than that of two medians.
        """
        rounds = zip(self.samples[name], self.samples[baseline], strict=True)
        return float(np.median([theirs / own for own, theirs in rounds]))


def interleave(
    variants: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    sample_s: float = 0.005,
    settle_s: float = 0.0,
    rounds: tuple[int, int] = (3, 41),
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Measurement:
    """Time ``variants`` in turn, round after round, until the budget is spent.

    Each variant is called once to warm up, and once to see how many calls make a sample. Every round takes one sample
    of each, starting with another variant than the round before. A sample of several calls begins with an untimed one,
    which brings the variant's own data back into the cache.

    Args:
        variants: what to call, by name.
        budget_s: seconds for all of them together, the warm-up not included.
        sample_s: seconds that one sample should last at least.
        settle_s: seconds to wait before each sample. Thread pools go on spinning for some milliseconds after a call; on
            the cores that the next variant needs.
        rounds: at least and at most so many, whatever the budget.
        clock, sleep: for tests.

    Raises:
        ValueError: there is no variant, or a number is out of range.
    """
    if not variants:
        raise ValueError("variants: expected at least one, got none")
    least, most = rounds
    if not 1 <= least <= most:
        raise ValueError(f"rounds: expected 1 <= least <= most, got {rounds}")
    if not (budget_s >= 0 and sample_s > 0 and settle_s >= 0):
        raise ValueError(f"budget_s, sample_s, settle_s: expected seconds, got {budget_s}, {sample_s}, {settle_s}")
    calls = {name: _calls(call, sample_s, clock) for name, call in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    with _no_collection():
        began = clock()
        for done in range(most):
            if done >= least and clock() - began >= budget_s:
                break
            first = done % len(names)
            for name in names[first:] + names[:first]:
                if settle_s:
                    sleep(settle_s)
                samples[name].append(_sample(variants[name], calls[name], clock))
    return Measurement(samples, calls)


def _calls(call: Callable[[], object], sample_s: float, clock: Clock) -> int:
    """How many calls last ``sample_s``; the first call, which may set things up, is not counted."""
    call()
    start = clock()
    call()
    took = clock() - start
    return min(10_000, max(1, math.ceil(sample_s / took))) if took > 0 else 10_000


def _sample(call: Callable[[], object], calls: int, clock: Clock) -> float:
    """Seconds per call."""
    if calls > 1:
        call()
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the samples."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch, and with it dynkern, use ``count`` threads until the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
