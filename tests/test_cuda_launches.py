"""The launcher as nvcc compiled it, with CUDA's runtime played by tests/cudart: launches, devices, streams, errors."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import FORMS
from cuda_objects import ROOT, objects

INT8, BFLOAT16, FLOAT16 = 0, 1, 2
NAMES = ("count", "device", "threads", "x", "y", "z", "shared", "stream", "after", "pushed")
CALLS = [
    ("dense", BFLOAT16, 1, 28672, 8192), ("dense", INT8, 16, 4096, 4096), ("dense", FLOAT16, 32, 300, 7),
    ("dense", BFLOAT16, 300, 1000, 1000), ("lists", BFLOAT16, 1, 28672, 8192), ("lists", INT8, 2, 500, 33),
    ("lists", FLOAT16, 4, 5000, 4096), ("sparse8", INT8, 256, 28672, 8192), ("sparse16", FLOAT16, 64, 1000, 70),
]  # fmt: skip


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = [str(o.path) for o in objects().values()]
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    library = tmp_path_factory.mktemp("cudart") / "libcall.so"
    source = ROOT / "tests" / "cudart" / "runtime.cpp"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,--no-undefined", "-I", str(ROOT / "csrc")]
    subprocess.run([compiler, *flags, str(source), *made, "-o", str(library)], check=True, timeout=120)
    loaded = ctypes.CDLL(str(library))
    loaded.call.restype = ctypes.c_char_p
    return loaded


def call(
    runtime: ctypes.CDLL, form: str, x_type: int, rows: int, inputs: int, outputs: int, before: int = 0,
    device: int = 0, fails: int = 0, missing: int = -1,
) -> tuple[str | None, dict[str, Any]]:  # fmt: skip
    found = (ctypes.c_int64 * len(NAMES))()
    words = runtime.call(FORMS[form], x_type, rows, inputs, outputs, before, device, fails, missing, found)
    return None if words is None else words.decode(), dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize(("form", "x_type", "rows", "inputs", "outputs"), CALLS)
def test_one_launch_on_the_callers_stream(
    runtime: ctypes.CDLL, form: str, x_type: int, rows: int, inputs: int, outputs: int
) -> None:
    """Whatever the shape: a call is one node of a graph; 256 threads, within what every device has."""
    error, found = call(runtime, form, x_type, rows, inputs, outputs)
    assert error is None
    assert (found["count"], found["stream"], found["threads"], found["pushed"]) == (1, 77, 256, 0)
    assert found["shared"] <= 48 * 1024
    assert found["x"] >= 1
    assert max(found["y"], found["z"]) <= 65535


def test_the_weights_device_is_current_for_the_launch_alone(runtime: ctypes.CDLL) -> None:
    error, found = call(runtime, *CALLS[0], before=2, device=5)
    assert (error, found["device"], found["after"]) == (None, 5, 2)


def test_errors_have_cudas_words_and_leave_the_device(runtime: ctypes.CDLL) -> None:
    error, found = call(runtime, *CALLS[0], before=2, device=5, fails=7)
    assert error == "ternary_linear: the kernel did not start: out of resources"
    assert found["after"] == 2
    error, found = call(runtime, *CALLS[0], before=2, device=5, missing=5)
    assert error == "ternary_linear: cudaSetDevice: no such device"
    assert (found["count"], found["after"]) == (0, 2)


def test_nothing_allocates_copies_or_waits() -> None:
    """By what the compiled files ask of CUDA's runtime: to launch, and to change the device."""
    asked: set[str] = set()
    for made in objects().values():
        text = subprocess.run(["nm", "-u", str(made.path)], capture_output=True, text=True, check=True).stdout
        asked |= set(re.findall(r"\bU (_*cuda\w+)", text))
    of_launches = {name for name in asked if re.match(r"__cuda(Register|Unregister|Push|Pop|Init|Get|Launch)", name)}
    allowed = {"cudaGetDevice", "cudaSetDevice", "cudaGetLastError", "cudaGetErrorString", "cudaLaunchKernel"}
    assert asked - of_launches <= allowed
    assert Path(ROOT / "csrc" / "cuda" / "ternary_linear.cu").stem in objects()
