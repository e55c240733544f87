"""csrc/cuda compiled by nvcc, once per run of pytest: for the tests of the machine code and of the launches."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90a")
SOURCES = tuple(sorted((ROOT / "csrc" / "cuda").glob("*.cu")))


@dataclass(frozen=True)
class Object:
    """One compiled file, and what ptxas said about its kernels."""

    path: Path
    report: str


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@lru_cache(maxsize=1)
def objects() -> dict[str, Object]:
    """Every .cu, by its name, for every one of ARCHITECTURES; skips where there is no nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")

    folder = Path(_folder().name)

    def build(source: Path) -> Object:
        to = folder / f"{source.stem}.o"
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", "-Xptxas=-v", "-I", ROOT / "csrc"]
        done = subprocess.run(
            [nvcc, *flags, *targets, "-c", source, "-o", to], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        return Object(to, done.stderr)

    with ThreadPoolExecutor(2) as pool:
        return {source.stem: made for source, made in zip(SOURCES, pool.map(build, SOURCES), strict=True)}
