"""The CUDA kernels on the host: compiles tests/simt with them and calls it, for the tests of csrc/cuda."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# The numbers of csrc/cuda/types.h.
TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
FORMS = {"dense": 0, "lists": 1, "sparse8": 2, "sparse16": 3}
# Undefined behaviour traps; nothing else is checked more cheaply than by a memory that ends.
FLAGS = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]


_FIELDS = (
    *("form", "x_type", "rows", "inputs", "outputs", "full_inputs", "full_outputs", "x_row"),
    *("bias_type", "y_type", "multiprocessors", "reversed", "x_bytes", "offset"),
)


class Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in _FIELDS]


@lru_cache(maxsize=1)
def emulator() -> ctypes.CDLL:
    """The library, compiled once per run of pytest; skips where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the host's version of the CUDA kernels with")
    folder = tempfile.TemporaryDirectory()
    library = Path(folder.name) / "libsimt.so"
    sources = [*sorted((ROOT / "tests" / "simt").glob("*.cpp")), ROOT / "csrc" / "cuda" / "pack.cpp"]
    places = ["-I", ROOT / "csrc", "-I", ROOT / "tests" / "simt"]
    subprocess.run([compiler, *FLAGS, "-fPIC", "-shared", *places, *sources, "-o", library], check=True, timeout=300)
    loaded = ctypes.CDLL(str(library))
    folder.cleanup()  # what is loaded stays
    loaded.emulate_linear.restype = loaded.emulate_mistake.restype = ctypes.c_char_p
    return loaded


@dataclass(frozen=True)
class Plan:
    """What the call was cut into."""

    columns: int
    splits: int
    blocks_of_outputs: int
    blocks_of_rows: int


def pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def linear(
    library: ctypes.CDLL,
    form: str,
    x: Tensor,
    packed: Tensor,
    full: tuple[int, int],
    outputs: int,
    *,
    row_scale: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    y_type: torch.dtype = torch.float32,
    multiprocessors: int = 1,
    reversed: bool = False,
) -> tuple[Tensor, Plan]:
    """The kernel of ``form`` on the rows of ``x``, a view of a buffer that ends where it does."""
    assert x.stride(1) == 1 or x.shape[1] == 1
    size = x.element_size()
    buffer = x.untyped_storage()
    call = Call(
        form=FORMS[form],
        x_type=TYPES[x.dtype],
        rows=x.shape[0],
        inputs=x.shape[1],
        outputs=outputs,
        full_inputs=full[1],
        full_outputs=full[0],
        x_row=x.stride(0),
        bias_type=TYPES[torch.float32 if bias is None else bias.dtype],
        y_type=TYPES[y_type],
        multiprocessors=multiprocessors,
        reversed=reversed,
        x_bytes=((x.shape[0] - 1) * x.stride(0) + x.shape[1] + x.storage_offset()) * size,
        offset=x.storage_offset(),
    )
    y = torch.full((x.shape[0], outputs), float("nan"), dtype=y_type)
    plan = (ctypes.c_int * len(fields(Plan)))()
    start = ctypes.c_void_p(buffer.data_ptr())
    error = library.emulate_linear(
        ctypes.byref(call), pointer(packed), start, *map(pointer, (row_scale, scale, bias, y)), plan
    )
    if error is not None:
        raise RuntimeError(error.decode())
    return y, Plan(*plan)
