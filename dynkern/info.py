"""What dynkern found on this machine and what it uses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import dynkern
from dynkern import _C
from dynkern.ops import break_even
from dynkern.ops.break_even import BreakEven
from dynkern.ops.gpu.dispatch import backends, why_cuda_is_off


@dataclass(frozen=True)
class Info:
    """What :func:`info` found.

    Attributes:
        versions: of dynkern, python, torch and numpy.
        isa: the instruction set whose kernels run (``DYNKERN_ISA`` forces one before the first import).
        isas: all that this build holds and this CPU has, the best last.
        kernels: the native kernels, each there for all of ``isas``.
        ternary: where skipping zeros begins to pay on ``isa``, of layers with activations of 8 bits
            (:mod:`dynkern.ops.break_even`).
        threads: how many threads PyTorch, and with it dynkern, uses.
        cuda: the name of the first CUDA device, or None.
        cuda_why_not: why there is no CUDA device; None where there is one.
        triton: the version of Triton, or None where it is not installed.
        gpu_kernels: per operator, what runs it on a GPU: the backends that can be loaded here, the preferred one first.
    """

    versions: Mapping[str, str]
    isa: str
    isas: tuple[str, ...]
    kernels: tuple[str, ...]
    ternary: tuple[BreakEven, ...]
    threads: int
    cuda: str | None
    cuda_why_not: str | None
    triton: str | None
    gpu_kernels: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        version = self.versions
        ours = [f"{op} ({'/'.join(names)})" for op, names in self.gpu_kernels.items() if names]
        lines = [
            ("dynkern", version["dynkern"]),
            ("torch", f"{version['torch']} (numpy {version['numpy']}, Python {version['python']})"),
            ("ISA", f"{self.isa} (available: {', '.join(self.isas)}; DYNKERN_ISA forces one)"),
            ("kernels", ", ".join(self.kernels)),
            ("ternary", skipping(self.ternary)),
            ("threads", str(self.threads)),
            ("CUDA", self.cuda or f"no: {self.cuda_why_not}"),
            ("Triton", self.triton or "no: not installed (pip install 'dynkern[triton]')"),
            ("GPU kernels", ", ".join(ours) or "none: PyTorch runs"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def info() -> Info:
    """The versions, instruction sets, kernels and devices that dynkern works with here; ``print`` shows them."""
    device, why_not = _cuda()
    return Info(
        versions={
            "dynkern": dynkern.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        isa=_C.isa(),
        isas=tuple(_C.isas()),
        kernels=tuple(_C.kernels()),
        ternary=tuple(break_even.TABLES.get(_C.isa(), ())),
        threads=torch.get_num_threads(),
        cuda=device,
        cuda_why_not=why_not,
        triton=_version("triton"),
        gpu_kernels=backends(),
    )


def skipping(table: Sequence[BreakEven]) -> str:
    """In words: which kernel skips zeros, and from which share of them on, for each number of rows."""
    # Later rows of the table are those of greater weights.
    largest = {row["rows"]: f"{row['kernel']} from {row['zeros']:.0%} zeros" for row in table if row["zeros"] < 1}
    words: list[str] = []
    last = ""
    for rows, what in largest.items():
        if what != last:
            words.append(f"{rows} {'row' if rows == 1 else 'rows'} or more: {what}")
            last = what
    return "; ".join(words) or "ternary_dense always"


def _cuda() -> tuple[str | None, str | None]:
    """The first CUDA device, or why there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0), None
    return None, why_cuda_is_off()


def _version(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
