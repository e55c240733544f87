"""What dynkern.ops.ternary_linear.cuda hands to the native part, seen by one that runs on the CPU in its place."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from graph_nodes import Made
from torch import Tensor

from dynkern import _C
from dynkern.ops import TernaryWeight
from dynkern.ops.gpu import quantized
from dynkern.ops.quantize import FLOATS, Activation
from dynkern.ops.ternary_linear import cuda, cuda_counters, cuda_forms, reference

pytestmark = pytest.mark.skipif(_C.cuda_architectures is None, reason="this build has no CUDA kernels (no nvcc)")
DTYPES = {number: dtype for dtype, number in cuda_forms.TYPES.items()}

DENSE = torch.randint(-1, 2, (6, 40), generator=torch.Generator().manual_seed(0)).to(torch.int8)


def at(address: int, count: int, type_number: int) -> Tensor:
    """The memory there, as a tensor."""
    dtype = DTYPES[type_number]
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype)


@dataclass
class OnCpu:
    """The signature of ``_C.CudaTernaryLinear``, and what its kernels compute, from the dense form."""

    form: int
    outputs: int
    inputs: int
    words: int
    starts: int
    bases: int
    rest: int
    chunk_groups: int
    device: int
    multiprocessors: int
    dense: Tensor

    def needs(self, x_type: int, rows: int, inputs: int, outputs: int) -> tuple[int, int, int]:
        return 3 * rows * outputs, 5, 3

    def run(
        self, x: int, x_type: int, rows: int, inputs: int, x_row: int, row_scale: int, scale: int, bias: int,
        bias_type: int, y: int, y_type: int, outputs: int, partial: int, arrived: int, stream: int,
    ) -> None:  # fmt: skip
        assert stream == 77
        at(partial, 3 * rows * outputs, 3).fill_(float("nan"))
        assert at(arrived, 5, 3).count_nonzero() == 0
        values = at(x, (rows - 1) * x_row + inputs, x_type).as_strided((rows, inputs), (x_row, 1)).double()
        sums = values @ self.dense[:outputs, :inputs].double().t()
        if row_scale:
            sums *= at(row_scale, rows, 3).double()[:, None]
        if scale:
            sums *= at(scale, self.outputs, 3)[:outputs].double()
        if bias:
            sums += at(bias, self.outputs, bias_type)[:outputs].double()
        at(y, rows * outputs, y_type).copy_(sums.flatten())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The forms that were derived; CUDA's runtime is played, too."""
    forms: list[int] = []

    def make(form: int, *rest: int) -> OnCpu:
        forms.append(form)
        return OnCpu(form, *rest, DENSE)

    stream = SimpleNamespace(cuda_stream=77, synchronize=lambda: None)
    monkeypatch.setattr(_C, "CudaTernaryLinear", make)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=2))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(quantized, "quantize_kernel", None)  # PyTorch quantises
    monkeypatch.setattr(cuda_counters, "_of_streams", {})
    monkeypatch.setattr(cuda_counters, "_left", {})
    monkeypatch.setattr(cuda_counters, "_reserves", [])
    monkeypatch.setattr(cuda_forms, "_weights", cuda_forms.Derived())
    return forms


def some_weight(scale: Tensor | None) -> TernaryWeight:
    """The weight whose dense form is ``DENSE``."""
    return TernaryWeight(TernaryWeight.pack(DENSE.float()).packed, (6, 40), scale)


@pytest.mark.parametrize("activation", [FLOATS, Activation(True), Activation(True, None, False)])
@pytest.mark.parametrize("outputs", [None, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_call(asked: list[int], dtype: torch.dtype, outputs: int | None, activation: Activation) -> None:
    scale, bias = torch.rand(6) + 0.5, torch.randn(6).to(dtype)
    weight = some_weight(scale)
    x = torch.randn(2, 3, 40).to(dtype)[..., :33]
    args = (x, weight.packed, scale, bias, 40, outputs, None, None)
    y = cuda.run(*args, activation)
    assert y.shape == (2, 3, outputs or 6)
    assert y.dtype == dtype
    if activation.int8:
        expected = reference.ternary_linear_int8(*args, activation.scale, activation.per_row).double()
    else:
        expected = x.double() @ weight.unpack().double()[: outputs or 6, :33].t() + bias[: outputs or 6].double()
    assert (y.double() - expected).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()
    assert asked == [cuda_forms.FORMS["dense"]]


def test_forms_are_derived_once_and_anew_when_written_to(asked: list[int]) -> None:
    weight = some_weight(None)
    x = torch.randn(1, 40).to(torch.bfloat16)
    for _ in range(2):
        cuda.run(x, weight.packed, None, None, 40, None, None, None)
    assert len(asked) == 1
    cuda.run(x, weight.packed, None, None, 40, None, None, None, form="sparse16")
    assert len(asked) == 2
    weight.packed.zero_()
    cuda.run(x, weight.packed, None, None, 40, None, None, None)
    assert len(asked) == 3


def test_prepare_derives_what_few_rows_need(asked: list[int]) -> None:
    mostly_zero = TernaryWeight.pack(torch.eye(6, 40))
    cuda_forms.prepare(mostly_zero.packed, 40)
    assert sorted(asked) == [cuda_forms.FORMS["dense"], cuda_forms.FORMS["lists"]]


def test_a_graph_cannot_derive(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = some_weight(None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"dense form is not derived yet.*before the capture"):
        cuda.run(torch.ones(1, 40).to(torch.bfloat16), weight.packed, None, None, 40, None, None, None)
    assert asked == []


def test_a_graph_has_counters_of_its_own(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Never those of a stream or of another call; from the reserve, and where that is used up newly made ones."""
    device = torch.device("cpu")
    kept = cuda_counters.zeros(5, device)
    assert cuda_counters.zeros(7, device).data_ptr() == kept.data_ptr()
    assert cuda_counters.zeros(kept.numel() + 1, device).numel() > kept.numel()
    monkeypatch.setattr(cuda_counters, "_RESERVED", 12)
    cuda_counters.reserve(device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    given = [cuda_counters.zeros(5, device) for _ in range(4)]
    words = {t.data_ptr() + 4 * i for t in given for i in range(5)}
    assert len(words) == 20
    assert cuda_counters._of_streams[device, 77].data_ptr() not in words
    (reserve,) = cuda_counters._reserves
    assert [t.untyped_storage().data_ptr() == reserve.untyped_storage().data_ptr() for t in given] == [True] * 2 + [
        False
    ] * 2
    assert not any(t.any() for t in given)
    cuda_counters.reserve(device)
    assert len(cuda_counters._reserves) == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_a_captured_layer_is_one_node(asked: list[int], monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """One launch of ours and nothing by PyTorch, though blocks share results and need counters at zero."""
    weight = some_weight(torch.rand(6))
    args = (torch.ones(rows, 40).to(torch.bfloat16), weight.packed, weight.scale, None, 40, None, None, None)
    cuda.run(*args)
    launches: list[int] = []
    monkeypatch.setattr(OnCpu, "run", lambda self, *_: launches.append(1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with Made() as made:
        cuda.run(*args)
    assert (len(launches), made.nodes) == (1, [])


def test_why_not_looks_at_the_zeros(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    x = torch.ones(80, 40).to(torch.bfloat16)
    dense, zeros = some_weight(None), TernaryWeight.pack(torch.eye(6, 40))
    assert "many rows" in (cuda.why_not(x, dense.packed, None, None, 40, None, None, None) or "")
    assert cuda.why_not(x[:2], dense.packed, None, None, 40, None, None, None) is None
    assert cuda.why_not(x, zeros.packed, None, None, 40, None, None, None) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "older than sm_80" in (cuda.why_not(x, zeros.packed, None, None, 40, None, None, None) or "")
