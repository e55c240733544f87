"""``dk.info()``: what it finds, and how it is printed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import dynkern as dk
from dynkern import _C
from dynkern.info import Info, _cuda


def test_it_finds_what_is_there(isa: str) -> None:
    found = dk.info()
    assert found.isa == isa
    assert list(found.isas) == _C.isas()
    assert isa in found.isas
    assert "sliced_conv2d" in found.kernels
    assert found.versions["torch"] == torch.__version__
    assert found.versions["numpy"] == np.__version__
    assert found.versions["dynkern"] == dk.__version__
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found.cuda is None) == (not torch.cuda.is_available())
    assert (found.cuda is None) != (found.cuda_why_not is None)


def test_it_knows_the_threads_of_now() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert dk.info().threads == before + 1
    finally:
        torch.set_num_threads(before)


def test_it_prints_every_fact() -> None:
    found = Info(
        versions={"dynkern": "1.2.3", "python": "3.12.1", "torch": "2.13.0", "numpy": "2.0"},
        isa="avx2",
        isas=("generic", "avx2"),
        kernels=("sliced_conv2d", "sliced_linear"),
        ternary=({"rows": 8, "weights": 0, "kernel": "ternary_lookup", "zeros": 0.7},),
        threads=7,
        cuda=None,
        cuda_why_not="no driver",
        triton=None,
        gpu_kernels={"sliced_conv2d": ("cuda", "triton"), "sliced_linear": ()},
    )
    lines = str(found).splitlines()
    assert len({line.index(line.split("  ")[-1].strip()) for line in lines}) == 1
    text = str(found)
    for fact in ("1.2.3", "3.12.1", "2.13.0", "generic, avx2", "sliced_conv2d, sliced_linear", "7", "no: no driver"):
        assert fact in text
    assert "dynkern[triton]" in text
    assert "8 rows or more: ternary_lookup from 70% zeros" in text
    assert "ternary_dense always" in str(dataclasses.replace(found, ternary=()))
    assert text.endswith("sliced_conv2d (cuda/triton)")
    assert str(dataclasses.replace(found, gpu_kernels={})).endswith("none: PyTorch runs")
    with_gpu = str(dataclasses.replace(found, cuda="A GPU", cuda_why_not=None, triton="3.5"))
    assert "A GPU" in with_gpu
    assert "no:" not in with_gpu


@pytest.mark.parametrize(("build", "error"), [(None, None), ("13.0", RuntimeError("Found no NVIDIA driver.\nMore."))])
def test_it_says_why_there_is_no_cuda(
    monkeypatch: pytest.MonkeyPatch, build: str | None, error: Exception | None
) -> None:
    def init() -> None:
        assert error is not None
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert _cuda() == (None, "Found no NVIDIA driver." if error else "this build of torch has no CUDA")


def run_with(isa: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import dynkern; print(dynkern.info().isa)"]
    return subprocess.run(command, env={**os.environ, "DYNKERN_ISA": isa}, capture_output=True, text=True, timeout=60)


def test_the_environment_forces_an_isa() -> None:
    assert run_with("generic").stdout.split() == ["generic"]


def test_an_unknown_isa_is_an_error_that_names_it() -> None:
    done = run_with("mmx")
    assert done.returncode != 0
    assert "DYNKERN_ISA" in done.stderr
    assert "mmx" in done.stderr
