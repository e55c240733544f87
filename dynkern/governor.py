"""Choosing the sub-net at run time, so that a latency target is met while the machine gets busy and calm again."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dynkern.nn.selection import Key

CALLS = 7  # per sub-net, to know how long it takes
OUTLIER = 20.0  # a call that takes so many times the usual time counts as no longer than that


@dataclass
class _Times:
    """Seconds of each sub-net when it was measured, slowest first."""

    seconds: dict[Key, float]

    @property
    def order(self) -> list[Key]:
        return list(self.seconds)


class Governor:
    """Runs the widest sub-net that meets a latency target: ``governor(x)`` in the place of ``run(x, subnet=...)``.

    Every sub-net is timed once for each shape of input, before its first call. From then on each call tells how much
    slower the machine is than it was then (its load, smoothed over the last calls), and so how long each sub-net would
    take now. When the running sub-net would miss the target, the widest one that would not takes its place at once. A
    wider one takes over only if it would meet the target with room to spare, for many calls in a row; and if it then
    fails soon, twice as many are asked for the next time. So a load near a boundary does not make it swing.

    Args:
        run: a compiled network with sub-nets (:func:`dynkern.compile`), or any callable ``run(x, subnet=key)`` with the
            attribute ``subnets``, or with ``subnets`` given.
        latency_ms: the target for one call, in milliseconds.
        subnets: the ones to choose from; all of ``run`` by default.
        headroom: a wider sub-net must take no more than this share of the target; above 0 and at most 1.
        patience: calls in a row that must leave room before a wider one is tried.
        smoothing: weight of the last call in the load, above 0 and at most 1.
        clock: gives seconds.

    Attributes:
        subnet: the sub-net that the next call runs.
        load: how much slower the machine is now than when it was measured; 1 if it is not.

    Raises:
        ValueError, TypeError: an argument is out of range, or there are no sub-nets to choose from.
    """

    def __init__(
        self,
        run: Callable[..., Tensor],
        latency_ms: float,
        *,
        subnets: Sequence[Key] | None = None,
        headroom: float = 0.85,
        patience: int = 20,
        smoothing: float = 0.3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        known: Any = getattr(run, "subnets", None) if subnets is None else subnets
        if not callable(run):
            raise TypeError(f"run: expected a compiled network, got {type(run).__name__}")
        if not known:
            raise ValueError("subnets: expected at least one to choose from, got none")
        if isinstance(latency_ms, bool) or not isinstance(latency_ms, (int, float)):
            raise TypeError(f"latency_ms: expected a number, got {type(latency_ms).__name__}")
        if not (math.isfinite(latency_ms) and latency_ms > 0):
            raise ValueError(f"latency_ms: expected milliseconds above 0, got {latency_ms}")
        for name, value in (("headroom", headroom), ("smoothing", smoothing)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}: expected above 0 and at most 1, got {value}")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience: expected an integer of 1 or more, got {patience!r}")
        self._run, self._known, self._clock = run, list(known), clock
        self._headroom, self._patience, self._smoothing = headroom, patience, smoothing
        self._target = latency_ms / 1e3
        self._times: dict[tuple[int, ...], _Times] = {}
        self._lock = threading.Lock()
        self.load = 1.0
        self.subnet: Key | None = None
        self._calm = 0  # calls in a row with room for a wider one
        self._wanted = patience  # how many are asked for
        self._since_up = math.inf  # calls since a wider one took over

    def __call__(self, x: Tensor) -> Tensor:
        """``run(x)`` with the sub-net chosen; what ``run`` returns and raises."""
        times = self._times.get(tuple(x.shape))
        if times is None:
            times = self._measure(x)
        with self._lock:
            key = self._choose(times)
        began = self._clock()
        y = self._run(x, subnet=key)
        taken = self._clock() - began
        with self._lock:
            self._learn(times, key, taken)
        return y

    @property
    def latency_ms(self) -> float:
        """The target, in milliseconds; it may be set at any time."""
        return self._target * 1e3

    @latency_ms.setter
    def latency_ms(self, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"latency_ms: expected milliseconds above 0, got {value}")
        with self._lock:
            self._target = value / 1e3
            self._calm, self._wanted = self._patience, self._patience

    def latencies(self, x: Tensor) -> dict[Key, float]:
        """Milliseconds of each sub-net for inputs of the shape of ``x``, slowest first, at the load of now."""
        times = self._times.get(tuple(x.shape)) or self._measure(x)
        return {key: seconds * self.load * 1e3 for key, seconds in times.seconds.items()}

    def measure(self, x: Tensor) -> None:
        """Time every sub-net anew; the load of now counts as none from then on."""
        self._measure(x)

    def _measure(self, x: Tensor) -> _Times:
        found: dict[Key, float] = {}
        for key in self._known:
            self._run(x, subnet=key)
        samples: dict[Key, list[float]] = {key: [] for key in self._known}
        for _ in range(CALLS):
            for key in self._known:
                began = self._clock()
                self._run(x, subnet=key)
                samples[key].append(self._clock() - began)
        found = {key: max(statistics.median(taken), 1e-9) for key, taken in samples.items()}
        times = _Times(dict(sorted(found.items(), key=lambda item: -item[1])))
        with self._lock:
            first = not self._times
            self._times[tuple(x.shape)] = times
            if first:
                self.load = 1.0
                self.subnet = self._widest(times, 1.0)
        return times

    def _widest(self, times: _Times, room: float) -> Key:
        """The widest sub-net that would now take at most ``room`` times the target, or else the narrowest."""
        for key, seconds in times.seconds.items():
            if seconds * self.load <= room * self._target:
                return key
        return times.order[-1]

    def _choose(self, times: _Times) -> Key:
        order = times.order
        now = self.subnet if self.subnet in times.seconds else order[-1]
        place = order.index(now)
        if times.seconds[now] * self.load > self._target and place < len(order) - 1:
            if self._since_up <= 2 * self._wanted:
                self._wanted = min(2 * self._wanted, 64 * self._patience)
            self._calm = 0
            now = self._widest(times, 1.0)
        elif place > 0:
            room = self._widest(times, self._headroom)
            self._calm = self._calm + 1 if order.index(room) < place else 0
            if self._calm > self._wanted:
                self._calm = 0
                self._since_up = 0
                now = order[max(order.index(room), place - 1)]  # one at a time
        self.subnet = now
        return now

    def _learn(self, times: _Times, key: Key, taken: float) -> None:
        ratio = min(taken / times.seconds[key], OUTLIER)
        self.load += self._smoothing * (ratio - self.load)
        self._since_up += 1
        if self._since_up > 16 * self._wanted:  # it stayed: the past does not count any more
            self._wanted = self._patience

    def __repr__(self) -> str:
        return f"Governor(latency_ms={self.latency_ms:g}, subnet={self.subnet!r}, load={self.load:.2f})"
