"""Measures the cases of :mod:`dynkern.bench.gpu_cases`: the check that comes before every figure, then the times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dynkern.bench import gpu_cases, gpu_peers, gpu_timer
from dynkern.bench.gpu_cases import OURS, Case, Place, Variant
from dynkern.bench.run import digits, first_line

ROUNDS, QUICK_ROUNDS = 15, 5


@dataclass(frozen=True)
class Row:
    """One variant of one case, eager or in a graph; no ``median_s`` where nothing was timed: ``reason`` says why."""

    suite: str
    case: str
    value: float
    variant: str
    mode: str
    status: str
    reason: str | None = None
    error: float | None = None
    tolerance: float | None = None
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    speedup: float | None = None


def why_not(suite: str) -> str | None:
    """Why a suite is left out here; None if it is not."""
    return gpu_peers.why_no_gemlite() if suite == "gemlite" else None


def measure(case: Case, place: Place) -> list[Row]:
    """The rows of one case: every variant is checked, then timed, eager and in a graph."""
    first = case.data()
    with torch.inference_mode():
        want = case.reference(first)
    fine: dict[Variant, tuple[dict[str, Any], float]] = {}
    rows = []
    for variant in case.variants:
        base: dict[str, Any] = {"suite": case.suite, "case": case.name, "value": case.value, "variant": variant.name}
        try:
            with torch.inference_mode():
                y = variant.call(first)[: len(want)].float().cpu()
            error = float((y - want).abs().max() / want.abs().max())
        except Exception as failure:
            rows.append(Row(**base, mode="both", status="failed", reason=first_line(failure)))
            continue
        if not error <= case.tolerance:
            reason = f"off by {error:.1e} of the largest result"
            rows.append(Row(**base, mode="both", status="wrong", reason=reason, tolerance=case.tolerance))
        elif place.dry:
            rows.append(Row(**base, mode="both", status="ok", reason="not measured", error=digits(error)))
        else:
            fine[variant] = (base, error)
    if fine:
        rows += _timed(case, place, fine, first)
    return rows


def _timed(case: Case, place: Place, fine: Mapping[Variant, tuple[dict[str, Any], float]], first: Any) -> list[Row]:
    data = [first, *(case.data() for _ in range(gpu_timer.copies(case.nbytes) - 1))]
    rows = []
    for mode, make in (("eager", gpu_timer.eager), ("graph", gpu_timer.graph)):
        ready, failed = {}, {}
        with torch.inference_mode():
            for variant in fine:
                try:
                    ready[variant] = make([lambda d=d, v=variant: v.call(d) for d in data])  # type: ignore[misc]
                except Exception as failure:
                    failed[variant] = first_line(failure)
            named = {v.name: run for v, run in ready.items()}
            rounds = QUICK_ROUNDS if place.quick else ROUNDS
            samples = gpu_timer.interleave(named, len(data), rounds) if named else {}
        for variant, (base, error) in fine.items():
            if variant in failed:
                rows.append(Row(**base, mode=mode, status="failed", reason=failed[variant]))
                continue
            sample = samples[variant.name]
            ours = samples.get(OURS)
            rows.append(
                Row(
                    **base, mode=mode, status="ok", error=digits(error), tolerance=case.tolerance,
                    median_s=digits(sample.quantile(0.5)), p20_s=digits(sample.quantile(0.2)),
                    p80_s=digits(sample.quantile(0.8)),
                    speedup=None if ours is None else digits(gpu_timer.ratio(ours, sample)),
                )
            )  # fmt: skip
    return rows


def run(suite: str, place: Place, left: Callable[[], float]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case of a suite, as long as ``left()`` seconds are left; later cases are rows that say so."""
    # The baseline's best algorithm, not its first guess; and what users of these kernels let PyTorch do.
    torch.backends.cudnn.benchmark = True
    cases = gpu_cases.SUITES[suite](place)
    while True:
        try:
            case = next(cases)
        except StopIteration:
            return
        except Exception as failure:
            yield [asdict(Row(suite, "cases", 0.0, OURS, "both", "failed", reason=first_line(failure)))]
            return
        lost = Row(case.suite, case.name, case.value, OURS, "both", "failed")
        if left() <= 0:
            found = [replace(lost, status="left out", reason="no time was left")]
        else:
            try:
                found = measure(case, place)
            except Exception as failure:
                found = [replace(lost, reason=first_line(failure))]
        yield [asdict(row) for row in found]
        if not place.dry:
            torch.cuda.empty_cache()
