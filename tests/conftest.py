from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from dynkern import _C

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# Small tensors gain nothing from threads; tests of threading set their own number.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``$DYNKERN_SHARED``, or ``shared`` beside the checkout: ``data/`` has CIFAR-10 and trained networks."""
    given = os.environ.get("DYNKERN_SHARED")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"no data folder in {root}; set DYNKERN_SHARED to the folder that has it")
    return root


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that tests start must find the installed package, not the source tree in the folder pytest ran in."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="module", params=_C.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this build and CPU have, in use for the test."""
    before = _C.isa()
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa(before)
