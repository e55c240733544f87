"""Makes pytest collect bench_*.py, turns the case table into parameters, and times them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynkern.bench import peers
from dynkern.bench.cases import Point, WidthCase, plan
from dynkern.bench.machine import cores
from dynkern.bench.stages import TernaryStage, WidthStage
from dynkern.bench.timer import threads


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every case of dynkern bench, instead of the quick ones")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "point" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        points = plan(metafunc.module.SUITE, not full, sorted({1, cores()}) if full else [1])
        metafunc.parametrize("point", points, ids=str, scope="session")


@pytest.fixture(scope="session")
def stages() -> Callable[[Point], WidthStage | TernaryStage]:
    """Gives the stage of a point's case; that of the case before is dropped."""
    current: list[WidthStage | TernaryStage] = []
    none = peers.none("pytest-benchmark times PyTorch alone")

    def stage(point: Point) -> WidthStage | TernaryStage:
        case = point.case
        if not current or current[0].case is not case:
            current[:] = [WidthStage(case, none) if isinstance(case, WidthCase) else TernaryStage(case, none)]
        return current[0]

    return stage


@pytest.fixture
def timed(benchmark: Any, stages: Callable[[Point], WidthStage | TernaryStage]) -> Callable[[Point, str], None]:
    """Checks and times one variant at one point."""

    def time(point: Point, variant: str) -> None:
        with threads(point.threads), torch.no_grad():
            task = stages(point).task(point)
            if variant not in task.variants:
                pytest.skip(f"{variant} does not run {point.case.name}")
            call = task.variants[variant]()
            with torch.inference_mode():
                error = task.error(call())
                assert error <= task.tolerance, f"{variant} is off by {error}: its time means nothing"
                benchmark.group = str(point)
                benchmark.extra_info.update(macs=task.macs, error=error)
                benchmark(call)

    return time
