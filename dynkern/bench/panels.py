"""Rows regrouped into curves: time against width or zeros, the ideal line, and the break-even point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dynkern.bench.results import ENGINE, MODULES, Row

# What a ternary layer has to beat.
DENSE = "torch_dense"


@dataclass(frozen=True)
class Panel:
    """One case with one batch size and thread count.

    Attributes:
        curves: for each variant the rows that have a time, by rising width or share of zeros.
    """

    suite: str
    case: str
    batch: int
    threads: int
    curves: Mapping[str, Sequence[Row]]

    def ideal(self) -> list[tuple[float, float]]:
        """(value, seconds) if time were proportional to the MACs that remain.

        It starts from dynkern's own time with the most MACs: the engine's at full width, or a layer's without zeros.
        """
        own = self.curves.get(ENGINE) or self.curves.get(MODULES, ())
        if not own:
            return []
        most = max(own, key=lambda row: row.macs)
        return [(row.value, (most.median_s or 0.0) * row.macs / most.macs) for row in own]

    def scaling(self) -> tuple[Row, Row] | None:
        """The engine's rows with the fewest and the most MACs; None if it ran at fewer than two widths."""
        rows = sorted(self.curves.get(ENGINE, ()), key=lambda row: row.macs)
        return (rows[0], rows[-1]) if len(rows) > 1 else None

    def steps_down(self) -> list[tuple[float, float]]:
        """The neighbouring widths of which the engine takes longer for the lesser."""
        curve = self.curves.get(ENGINE, ())
        return [(a.value, b.value) for a, b in itertools.pairwise(curve) if (a.median_s or 0.0) > (b.median_s or 0.0)]

    def break_even(self) -> float | None:
        """The share of zeros from which on dynkern is faster than dense torch at every measured point.

        Interpolated in the logarithm of the speed-up. The least share measured if it is faster throughout; None if it
        is slower at the largest.
        """
        return break_even(
            [(row.value, row.speedup[DENSE]) for row in self.curves.get(MODULES, ()) if DENSE in row.speedup]
        )


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the speed-up of rising ``points`` (value, speed-up) passes 1 for the last time; see :class:`Panel`."""
    if not points or points[-1][1] < 1:
        return None
    slower = [i for i, (_, speedup) in enumerate(points) if speedup < 1]
    if not slower:
        return points[0][0]
    (x0, y0), (x1, y1) = points[slower[-1]], points[slower[-1] + 1]
    return x0 + (x1 - x0) * -math.log(y0) / (math.log(y1) - math.log(y0))


def panels(rows: Sequence[Row], suite: str) -> list[Panel]:
    """The panels of one suite, in the order of the rows."""
    made = []
    chosen = [row for row in rows if row.suite == suite]
    for (case, batch, threads), group in groupby(chosen, lambda row: (row.case, row.batch, row.threads)):
        curves: dict[str, list[Row]] = {}
        for row in group:
            if row.median_s is not None:
                curves.setdefault(row.variant, []).append(row)
        for curve in curves.values():
            curve.sort(key=lambda row: row.value)
        made.append(Panel(suite, case, batch, threads, curves))
    return made
