"""Checks and times every point."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynkern.bench.cases import IntegerCase, Point, TernaryCase, TernaryNetworkCase, WidthCase
from dynkern.bench.peers import Call, Choice, label
from dynkern.bench.results import Row
from dynkern.bench.stages import IntegerStage, Task, TernaryStage, WidthStage
from dynkern.bench.ternary_network import TernaryNetworkStage
from dynkern.bench.timer import Clock, interleave, threads

# Seconds. Less than half of the three minutes that a default run may take: the rest is for points that take longer than
# their share, for exporting and quantising networks for the other runtimes, and for drawing.
BUDGET = 75.0
# No point gets more than this, however much is left.
MOST = 1.0
# Runtimes with thread pools of their own, that spin on after a call while the next variant needs the cores (and that
# suffer when the OpenMP threads of PyTorch do so).
OWN_THREADS = ("onnxruntime", "openvino", "onnxruntime_int8", "openvino_int8", "onnxruntime_2bit")
SETTLE = 0.02


Stage = WidthStage | TernaryStage | TernaryNetworkStage


class Budget:
    """Shares what is left of a time budget among the points that are left."""

    def __init__(self, total_s: float, points: int, clock: Clock = time.monotonic) -> None:
        self._end, self._left, self._clock = clock() + total_s, points, clock

    def share(self) -> float:
        """Seconds for the next point."""
        left = max(0.0, self._end - self._clock())
        share = left / max(1, self._left)
        self._left -= 1
        return min(MOST, share)


def measure(
    points: Sequence[Point],
    choice: Choice,
    *,
    budget_s: float = BUDGET,
    started: Callable[[Point], object] = lambda point: None,
) -> list[Row]:
    """Check and time all variants at every point.

    Args:
        points: those of one case must be together: its networks are built once and then dropped.
        choice: the optional baselines.
        budget_s: seconds in all. A guide: every variant is timed at least three times, however long that takes.
        started: told of each point before it runs.
    """
    budget = Budget(budget_s, len(points))
    rows: list[Row] = []
    stage: Stage | None = None
    for point in points:
        started(point)
        # One thread also while networks are exported: what they choose may depend on it.
        with threads(point.threads), torch.no_grad():
            if stage is None or stage.case is not point.case:
                stage = _stage(point, choice)
            rows += run(point, stage.task(point), budget.share)
    return rows


def _stage(point: Point, choice: Choice) -> Stage:
    if isinstance(point.case, IntegerCase):
        return IntegerStage(point.case, choice)
    if isinstance(point.case, WidthCase):
        return WidthStage(point.case, choice)
    if isinstance(point.case, TernaryCase):
        return TernaryStage(point.case, choice)
    if isinstance(point.case, TernaryNetworkCase):
        return TernaryNetworkStage(point.case, choice)
    raise TypeError(f"points: expected a case of a suite, got {type(point.case).__name__}")


def run(point: Point, task: Task, share: Callable[[], float]) -> list[Row]:
    """The rows of one point, in the order of the task's variants.

    Nothing that a variant does wrong ends the run: that is a row without a time, and a line of the report.
    """
    ready: dict[str, Call] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, build in task.variants.items():
        rows[name] = {"variant": name}
        try:
            call = build()
            with torch.inference_mode():
                error, tolerance = task.judge(name, torch.as_tensor(call()))
        except Exception as failure:
            rows[name] |= {"status": "failed", "reason": first_line(failure)}
            continue
        rows[name] |= {"error": digits(error) if math.isfinite(error) else None, "tolerance": digits(tolerance)}
        if error <= tolerance:
            ready[name] = call
        else:
            rows[name] |= {
                "status": "wrong",
                "reason": f"{label(name, point.case.suite)} is off by {error:.1e}, more than {tolerance:.1e}",
            }
    budget_s = share()
    settle = SETTLE if point.threads > 1 and any(name in ready for name in OWN_THREADS) else 0.0
    if ready:
        with torch.inference_mode():
            timing = interleave(ready, budget_s=budget_s, settle_s=settle)
        for name in ready:
            rows[name] |= {
                "status": "ok",
                "median_s": digits(timing.quantile(name, 0.5)),
                "p20_s": digits(timing.quantile(name, 0.2)),
                "p80_s": digits(timing.quantile(name, 0.8)),
                "rounds": len(timing.samples[name]),
                "calls": timing.calls[name],
                "speedup": {other: digits(timing.speedup(name, other)) for other in ready if other != name},
            }
    common: dict[str, Any] = {
        "suite": point.case.suite,
        "case": point.case.name,
        "value": point.value,
        "batch": point.batch,
        "threads": point.threads,
        "macs": task.macs,
        "dense_macs": task.dense_macs,
    }
    return [Row(**common, **row) for row in rows.values()]


def digits(value: float) -> float:
    """``value`` to four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:200]
