"""The operators on a GPU, as far as a machine without one can tell: dispatch, tracing, tables, what is derived."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import dynkern as dk
from dynkern import ops
from dynkern.ops import library
from dynkern.ops.gpu import configs, dispatch, layout
from dynkern.ops.gpu.configs import Config, Device, Layer, Row
from dynkern.ops.gpu.derived import Derived
from dynkern.ops.gpu.epilogue import Epilogue
from dynkern.ops.gpu.ternary_codes import codes_for, dense_for

OPS = (*dispatch.BACKENDS, "ternary_linear_int8", "ternary_conv2d_int8")
H200 = Device("NVIDIA H200", (9, 0), 132)


GEOMETRY = (2, 2, 1, 1, 1, 1, 1, 1)


def fake_arguments(op: str, last: bool, device: str = "cuda") -> tuple[Any, ...]:
    """Arguments of the registered ``op``: fake tensors, a narrow width of a padded, strided layer."""
    new: dict[str, Any] = {"device": device, "dtype": torch.float16}
    conv = "conv2d" in op
    # Made as it shall be: views of fake CUDA tensors are more than a PyTorch without CUDA can do.
    form = torch.channels_last if conv and last else torch.contiguous_format
    x = torch.empty((2, 6, 9, 7) if conv else (2, 3, 6), **new, memory_format=form)
    shape = (16, 8, 3, 3) if conv else (16, 8)
    bias = torch.empty(16, **new)
    how: tuple[Any, ...] = (GEOMETRY, 1) if conv else ()
    if not op.startswith("ternary"):
        return x, torch.empty(shape, **new), bias, *how, 12, None, None
    packed = torch.empty(16, -(-torch.Size(shape[1:]).numel() // 4), dtype=torch.uint8, device=device)
    quantized = (None, True) if op.endswith("int8") else ()
    return x, packed, torch.empty(16, device=device), bias, shape if conv else 8, *how, 12, None, None, *quantized


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_fake_cuda_tensors_run_through_every_op(op: str, last: bool) -> None:
    """Shape, dtype, device and memory format of the result, with no GPU and no driver."""
    with FakeTensorMode():
        args = fake_arguments(op, last)
        y = getattr(torch.ops.dynkern, op)(*args)
        assert y.shape == ((2, 12, 5, 4) if "conv2d" in op else (2, 3, 12))
        assert (y.dtype, y.device) == (torch.float16, torch.device("cuda:0"))
        channels_last = last and "conv2d" in op
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("op", OPS)
def test_public_functions_take_fake_cuda_tensors(op: str) -> None:
    with FakeTensorMode(), torch.no_grad():
        x, weight, *rest = fake_arguments(op, True)
        if op.startswith("ternary"):
            weight = ops.TernaryWeight(weight, rest[2] if "conv2d" in op else (16, 8), rest[0])
        assert public(op)(x, weight).device == torch.device("cuda:0")


def public(op: str) -> Callable[..., Tensor]:
    """The function that calls the registered ``op``."""
    function = getattr(ops, op.removesuffix("_int8"))
    return partial(function, activation="int8") if op.endswith("_int8") else function


@pytest.mark.parametrize("op", OPS)
def test_errors_are_those_of_the_cpu(op: str) -> None:
    """The same words for the same mistake, on fake CUDA tensors and on CPU tensors."""

    def mistake(device: str) -> str:
        with FakeTensorMode():
            x = torch.empty((1, 9, 4, 4) if "conv2d" in op else (1, 9), device=device)
            shape = (4, 8, 1, 1) if "conv2d" in op else (4, 8)
            weight: Any = torch.empty(shape, device=device)
            if op.startswith("ternary"):
                weight = ops.TernaryWeight(torch.empty(4, 2, dtype=torch.uint8, device=device), shape)
            with pytest.raises(ValueError, match="expected 1 to 8 channels") as caught:
                public(op)(x, weight)
            return str(caught.value)

    assert mistake("cuda") == mistake("cpu")


class OnGpu:
    """Stands in for a tensor on a GPU that is not there."""

    is_cuda = True
    device = torch.device("cuda:0")
    dtype = torch.float16


def test_without_a_driver_a_cuda_tensor_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"sliced_linear: x is on cuda:0, but CUDA is off here: .+"):
        dispatch.run("sliced_linear", (OnGpu(),), lambda x: x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_moving_to_a_gpu_that_is_not_there() -> None:
    """dk.info() says why CUDA is off, and PyTorch refuses the move before dynkern sees a tensor."""
    assert dk.info().cuda is None
    assert dk.info().cuda_why_not
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVIDIA"):
        dk.nn.SlicedConv2d(3, 4, 3).cuda()


def test_importing_needs_no_triton() -> None:
    """Triton is neither imported with dynkern nor needed: its absence is a reason that is given, not an error."""
    program = (
        "import sys; sys.modules['triton'] = None; import dynkern\n"
        "from dynkern.ops.gpu import dispatch\n"
        "assert not any('triton' in names for names in dispatch.backends().values())\n"
        "print(dispatch.backend('sliced_conv2d', 'triton'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
    assert "dynkern[triton]" in done.stdout


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Makes the dispatcher take CPU tensors for CUDA tensors; gives one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DYNKERN_BACKEND", raising=False)
    monkeypatch.delenv("DYNKERN_STRICT", raising=False)
    library.fallback.cache_clear()
    yield torch.ones(2, 3)
    library.fallback.cache_clear()


def with_backend(monkeypatch: pytest.MonkeyPatch, why: str | None) -> None:
    """One backend for every operator, which doubles its argument or says why not."""
    made = SimpleNamespace(why_not=lambda x: why, run=lambda x: 2 * x)
    monkeypatch.setattr(dispatch, "backend", lambda op, name: made)


def test_the_first_backend_that_takes_the_call_runs_it(gpu: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    taking, refusing = (
        SimpleNamespace(why_not=lambda x, why=why: why, run=lambda x, by=by: by * x)
        for why, by in ((None, 2), ("busy", 3))
    )
    monkeypatch.setattr(dispatch, "BACKENDS", {"sliced_linear": ("cuda", "triton")})
    monkeypatch.setattr(dispatch, "backend", lambda op, name: refusing if name == "cuda" else taking)
    assert dispatch.run("sliced_linear", (gpu,), lambda x: -x).sum() == 12


def test_torch_runs_what_no_kernel_takes_and_that_is_logged_once(
    gpu: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_backend(monkeypatch, "too small")
    with caplog.at_level(logging.WARNING, logger="dynkern"):
        for _ in range(3):
            assert dispatch.run("sliced_linear", (gpu,), lambda x: -x).sum() == -6
    assert [r.getMessage() for r in caplog.records] == [
        "sliced_linear: no dynkern kernel for torch.float32 on cpu (triton: too small); "
        "PyTorch runs it on the active slice"
    ]
    library.fallback.cache_clear()
    monkeypatch.setenv("DYNKERN_STRICT", "1")
    with pytest.raises(RuntimeError, match="DYNKERN_STRICT is set"):
        dispatch.run("sliced_linear", (gpu,), lambda x: -x)


def test_a_backend_can_be_forced(gpu: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, "too small")
    monkeypatch.setenv("DYNKERN_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="triton: too small"):
        dispatch.run("sliced_linear", (gpu,), lambda x: -x)
    monkeypatch.setenv("DYNKERN_BACKEND", "torch")
    assert dispatch.run("sliced_linear", (gpu,), lambda x: -x).sum() == -6
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DYNKERN_BACKEND", "vulkan")
    with pytest.raises(RuntimeError, match="vulkan: expected one of triton or torch"):
        dispatch.run("sliced_linear", (gpu,), lambda x: -x)


def layer(**changes: Any) -> Layer:
    base = {"op": "sliced_conv2d", "dtype": "float16", "outputs": 64, "inputs": 64, "taps": 9, "pixels": 401408}
    return Layer(**{**base, "last": True, **changes})


def test_shipped_tables_are_chosen_by_name_then_by_capability() -> None:
    assert configs.tables(H200)[-1].device == "NVIDIA H200"
    assert configs.tables(Device("NVIDIA H100 80GB HBM3", (9, 0), 132))[-1].device == "NVIDIA H200"
    assert configs.tables(Device("NVIDIA GeForce RTX 4090", (8, 9), 128)) == ()
    assert configs.row_for(H200, layer()).origin == "arithmetic"
    assert configs.row_for(Device("NVIDIA GeForce RTX 4090", (8, 9), 128), layer()).origin == "rule"


def test_no_shipped_row_claims_a_measurement() -> None:
    """Until a card has been measured, every row says that it comes from arithmetic."""
    assert {row.origin for table in configs.shipped() for row in table.rows} == {"arithmetic"}


def test_tables_survive_a_round_trip() -> None:
    for table in configs.shipped():
        assert configs.parse(configs.dump(table), "again") == table


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "device": "x", "capability": [9, 0]}'])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"here\.json: expected a table of configurations"):
        configs.parse(text, "here.json")


def test_the_users_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a row without configurations leaves its layers to PyTorch."""
    monkeypatch.setenv("DYNKERN_CACHE", str(tmp_path))
    own = Row("sliced_conv2d", ("float16",), None, (64, 64), (0, None), (0, None), (0, None), None, None, "tuned")
    path = configs.user_table(H200)
    assert path == tmp_path / "nvidia-h200.json"
    path.write_text(configs.dump(configs.Table("NVIDIA H200", (9, 0), (own,))))
    configs.forget()
    try:
        assert configs.row_for(H200, layer()) == own
        assert configs.pick(own, 64, True) is None
        assert configs.row_for(H200, layer(outputs=65)).origin == "arithmetic"
    finally:
        monkeypatch.delenv("DYNKERN_CACHE")
        configs.forget()


def test_wide_needs_alignment_and_half_its_tile() -> None:
    row = configs.row_for(H200, layer(outputs=128))
    assert row.wide is not None
    assert configs.pick(row, 128, True) == (row.wide, 8)
    assert configs.pick(row, row.wide.block_o // 2, True) == (row.wide, 8)
    assert configs.pick(row, row.wide.block_o // 2 - 8, True) == (row.narrow, 0)
    assert configs.pick(row, 128, False) == (row.narrow, 0)


@pytest.mark.parametrize("pixels", [1, 16, 17, 5000])
@pytest.mark.parametrize("op", ["sliced_conv2d", configs.DEPTHWISE, "ternary_linear"])
def test_the_rule_gives_tiles_that_triton_takes(op: str, pixels: int) -> None:
    for outputs in (1, 17, 64, 1000):
        row = configs.by_rule(H200, layer(op=op, pixels=pixels, outputs=outputs))
        for config in (row.wide, row.narrow):
            assert isinstance(config, Config)
            sizes = [config.block_p, config.block_o] + ([config.block_k] if config.block_k else [])
            assert all(size & (size - 1) == 0 for size in sizes)
            assert op == configs.DEPTHWISE or min(sizes) >= 16


def test_derived_values_live_and_change_with_their_tensors() -> None:
    cache: Derived[int] = Derived(keep=2)
    made = []

    def get(*tensors: Tensor, key: int = 0) -> int:
        return cache.get(tensors, key, lambda: made.append(key) or len(made))

    a, b = torch.zeros(2), torch.zeros(2)
    assert [get(a, b), get(a, b), get(a)] == [1, 1, 2]
    b += 1
    assert [get(a, b), get(a, b)] == [3, 3]
    assert [get(a, key=5), get(a, key=6), get(a, key=5)] == [4, 5, 4]
    assert get(a, b) == 6  # only two are kept
    with torch.inference_mode():
        c = torch.zeros(2)
        assert [get(c), get(c)] == [7, 8]  # its writes are not counted
    del a
    gc.collect()
    assert not cache._known


def test_derived_codes_follow_a_packed_weight() -> None:
    weight = ops.TernaryWeight.pack(torch.randint(-1, 2, (6, 40)).float())
    first = codes_for(weight.packed, weight.shape, 16, None, None)
    assert codes_for(weight.packed, weight.shape, 16, None, None) is first
    weight.packed.zero_()
    assert not codes_for(weight.packed, weight.shape, 16, None, None).any()
    assert not dense_for(weight.packed, weight.shape, None, torch.float16).any()


def test_memory_layouts() -> None:
    x = torch.zeros(2, 8, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert [layout.last(t) for t in (x, last, last[:, :3], last[:, :1])] == [False, True, True, False]
    assert layout.output_format(last) == torch.contiguous_format  # only on a GPU
    huge = torch.empty(1).expand(2**16, 2**16)
    assert not layout.too_large(huge, (1,))
    assert layout.too_large(huge, (2**16, 2**16))


def test_an_epilogue_is_checked() -> None:
    like = torch.zeros(1, 4, 2, 2)
    Epilogue(torch.zeros(4), None, like, "clamp").check((1, 4, 2, 2), like)
    for wrong, words in (
        (Epilogue(kind="swish"), "expected an activation"),
        (Epilogue(scale=torch.zeros(3)), "scale: expected"),
        (Epilogue(shift=torch.zeros(4).half()), "shift: expected"),
        (Epilogue(residual=like[:, :3]), "residual: expected"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong.check((1, 4, 2, 2), like)


def test_tables_are_in_the_package() -> None:
    names = {p.name for p in configs.TABLES.iterdir() if p.name.endswith(".json")}
    assert names == {"nvidia-a100.json", "nvidia-h200.json", "nvidia-b200.json"}
    for name in names:
        assert json.loads((configs.TABLES / name).read_text())["schema"] == configs.SCHEMA
