"""Timing on a GPU: events around many calls, each on data of its own, so that nothing is found in the cache by luck."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Bytes that the data of one round together have at least: more than twice the largest second-level cache there is.
ROTATED = 256 * 2**20
MOST_COPIES = 64

# A variant: one call for each copy of the data.
Calls = Sequence[Callable[[], object]]


def copies(nbytes: int) -> int:
    """How many copies of ``nbytes`` of data a round goes through."""
    return int(np.clip(-(-ROTATED // max(1, nbytes)), 2, MOST_COPIES))


@dataclass(frozen=True)
class Sample:
    """Seconds per call of one variant: one number per round."""

    seconds: Sequence[float]

    def quantile(self, share: float) -> float:
        """What ``share`` of the samples do not exceed."""
        return float(np.quantile(self.seconds, share))


def ratio(ours: Sample, theirs: Sample) -> float:
    """How many times faster ``ours`` is: the median over the rounds, both of which saw the same state of the card."""
    return float(np.median([b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]))


def eager(calls: Calls) -> Callable[[], object]:
    """All calls, as Python makes them."""

    def run() -> None:
        for call in calls:
            call()

    return run


def graph(calls: Calls) -> Callable[[], object]:
    """All calls, captured once and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        kept = [call() for call in calls]

    def replay() -> object:
        captured.replay()
        return kept

    return replay


def interleave(variants: Mapping[str, Callable[[], object]], calls: int, rounds: int) -> dict[str, Sample]:
    """Time ``variants`` in turn, ``rounds`` times; each runs ``calls`` calls, and starts with another every round."""
    for run in variants.values():
        run()
    torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for done in range(rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            variants[name]()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1e3 / calls)
    return {name: Sample(times) for name, times in seconds.items()}
