"""Learning rates over a run: functions of how many epochs have passed, with fractions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Schedule = Callable[[float], float]


def one_cycle(peak: float, epochs: float, warmup: float = 0.25, first: float = 0.04, last: float = 0.0) -> Schedule:
    """Up to ``peak`` in a straight line, then down along a cosine: most accuracy for few epochs.

    Args:
        peak: the largest rate.
        epochs: of the whole run.
        warmup: the share of the run that goes up, 0 to 1.
        first, last: where it begins and ends, as shares of ``peak``.
    """
    _check("peak", peak)
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup: expected 0 or more and below 1, got {warmup}")
    turn = warmup * epochs

    def rate(passed: float) -> float:
        if passed < turn:
            return peak * (first + (1 - first) * passed / turn)
        down = min(1.0, (passed - turn) / (epochs - turn))
        return peak * (last + (1 - last) * (1 + math.cos(math.pi * down)) / 2)

    return rate


def steps(rates: Mapping[int, float]) -> Schedule:
    """``rates[e]`` from the moment that ``e`` epochs have passed; the first must be at 0."""
    known = sorted(rates.items())
    if not known or known[0][0] != 0:
        raise ValueError(f"rates: expected one for epoch 0 at least, got {dict(rates)}")
    for _, value in known:
        _check("rates", value)

    def rate(passed: float) -> float:
        return [value for begin, value in known if begin <= passed][-1]

    return rate


def constant(value: float) -> Schedule:
    """The same rate all the time."""
    _check("value", value)
    return lambda passed: value


def _check(name: str, rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{name}: expected a learning rate above 0, got {rate}")
