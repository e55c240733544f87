"""The governor: on a machine whose time is simulated, so that every decision is the same each time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import dynkern as dk
from dynkern.governor import Governor

MS = {0.25: 1.0, 0.5: 3.0, 0.75: 6.0, 1.0: 10.0}
X = torch.zeros(1, 3, 4, 4)


class Machine:
    """Sub-nets that take ``MS`` milliseconds, times the load and noise, of a clock of its own."""

    subnets = tuple(MS)

    def __init__(self, load: Callable[[int], float] = lambda call: 1.0, noise: float = 0.0) -> None:
        self.now, self.calls, self.load, self.noise = 0.0, 0, load, noise
        self.ran: list[float] = []
        self._random = random.Random(0)

    def __call__(self, x: Tensor, subnet: Any) -> Tensor:
        load = self.load(len(self.ran)) if self.calls >= 8 * len(MS) else 1.0  # measured when calm
        if self.calls >= 8 * len(MS):
            self.ran.append(subnet)
        self.calls += 1
        self.now += MS[subnet] / 1e3 * load * math.exp(self._random.gauss(0, self.noise))
        return x

    def clock(self) -> float:
        return self.now


def governed(machine: Machine, target: float, calls: int, **options: Any) -> tuple[Governor, list[float]]:
    governor = Governor(machine, target, clock=machine.clock, **options)
    for _ in range(calls):
        governor(X)
    return governor, machine.ran


@pytest.mark.parametrize(
    ("target", "expected"), [(20, 1.0), (10.5, 1.0), (7, 0.75), (5, 0.5), (1.5, 0.25), (0.1, 0.25)]
)
def test_the_widest_that_meets_the_target(target: float, expected: float) -> None:
    governor, ran = governed(Machine(), target, 30)
    assert set(ran) == {expected}
    assert governor.subnet == expected
    assert governor.load == pytest.approx(1)
    assert list(governor.latencies(X)) == [1.0, 0.75, 0.5, 0.25]


def test_it_gets_narrower_at_once_and_wider_with_patience() -> None:
    machine = Machine(lambda call: 2.5 if 50 <= call < 150 else 1.0)
    _, ran = governed(machine, 12, 400, patience=20)
    assert set(ran[:51]) == {1.0}
    # 2.5 times slower: 1.0 would take 25 ms, 0.75 15, 0.5 7.5.
    narrow = next(i for i, key in enumerate(ran) if key == 0.5)
    assert narrow < 60
    assert set(ran[narrow:150]) == {0.5}
    # Calm again: one step at a time, each after its time of patience, but soon.
    assert ran[150 + 5] == 0.5
    up = next(i for i in range(150, 400) if ran[i] == 0.75)
    assert 20 <= up - 150 <= 40
    top = next(i for i in range(150, 400) if ran[i] == 1.0)
    assert 20 <= top - up <= 60
    assert set(ran[top:]) == {1.0}


@pytest.mark.parametrize("load", [1.0, 1.15, 1.2, 1.25, 1.6, 1.95, 2.05, 3.9])
def test_a_load_near_a_boundary_does_not_make_it_swing(load: float) -> None:
    machine = Machine(lambda call: load if call >= 20 else 1.0, noise=0.08)
    _, ran = governed(machine, 12, 3000)
    switches = sum(a != b for a, b in pairwise(ran[100:]))
    assert switches <= 12
    # And it does what it is for: nearly all calls within the target, unless none can be.
    missed = sum(MS[key] * load > 12 for key in ran[100:])
    assert missed <= 0.02 * len(ran)


def test_a_load_that_comes_and_goes_is_tried_ever_less_often() -> None:
    """1.0 always fails soon after it was tried: the time between two tries grows."""
    machine = Machine(lambda call: 1.0)
    machine.load = lambda call: 1.6 if machine.ran and machine.ran[-1] == 1.0 else 0.8
    _, ran = governed(machine, 12, 4000)
    tries = [i for i in range(1, len(ran)) if ran[i] == 1.0 and ran[i - 1] != 1.0]
    assert len(tries) >= 3
    gaps = [b - a for a, b in pairwise(tries)]
    assert gaps[-1] > 4 * gaps[0]


def test_a_single_slow_call_changes_nothing() -> None:
    machine = Machine(lambda call: 1.5 if call == 40 else 1.0)
    _, ran = governed(machine, 12, 80)
    assert set(ran) == {1.0}


def test_a_new_target_counts_at_once() -> None:
    machine = Machine()
    governor, _ = governed(machine, 20, 10)
    governor.latency_ms = 5
    governor(X)
    assert governor.subnet == 0.5
    governor.latency_ms = 50
    for _ in range(100):
        governor(X)
    assert governor.subnet == 1.0
    with pytest.raises(ValueError, match="latency_ms"):
        governor.latency_ms = 0


def test_each_shape_is_measured() -> None:
    machine = Machine()
    governor, _ = governed(machine, 20, 1)
    before = machine.calls
    governor(torch.zeros(2, 3, 4, 4))
    assert machine.calls - before == 8 * len(MS) + 1
    governor(torch.zeros(2, 3, 4, 4))
    assert machine.calls - before == 8 * len(MS) + 2


def test_with_an_engine() -> None:
    torch.manual_seed(0)
    net = dk.slim(dk.models.resnet20(), (0.25, 1.0)).eval()
    x = torch.randn(1, 3, 32, 32)
    dk.calibrate_bn(net, [x])
    run = dk.compile(net, x, threads=1)
    for target, key in ((1000.0, 1.0), (1e-3, 0.25)):
        governor = dk.Governor(run, latency_ms=target)
        assert torch.equal(governor(x), run(x, subnet=key))
        assert governor.subnet == key
        assert governor.latencies(x)[1.0] > governor.latencies(x)[0.25]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"latency_ms": 0}, ValueError, "latency_ms"),
        ({"latency_ms": float("nan")}, ValueError, "latency_ms"),
        ({"latency_ms": "fast"}, TypeError, "latency_ms"),
        ({"headroom": 0}, ValueError, "headroom"),
        ({"smoothing": 1.5}, ValueError, "smoothing"),
        ({"patience": 0}, ValueError, "patience"),
        ({"subnets": ()}, ValueError, "subnets"),
        ({"run": 3, "subnets": (1.0,)}, TypeError, "run"),
        ({"run": lambda x, subnet: x}, ValueError, "subnets"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        Governor(**{"run": Machine(), "latency_ms": 5, **arguments})
