"""The choice among the CUDA forms, and how the native part refuses what it cannot take; no device is needed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dynkern import _C
from dynkern.ops.quantize import FLOATS, Activation
from dynkern.ops.ternary_linear import cuda, cuda_forms
from dynkern.ops.ternary_weight import pack_signs

built = pytest.mark.skipif(_C.cuda_architectures is None, reason="this build has no CUDA kernels (no nvcc)")
CHOICES = [
    (torch.bfloat16, 1, 0.95, "lists"),
    (torch.bfloat16, 1, 0.5, "dense"),
    (torch.int8, 2, 0.9, "lists"),
    (torch.float16, 16, 0.95, "dense"),
    (torch.float16, 256, 0.95, "sparse16"),
    (torch.int8, 256, 0.95, "sparse8"),
    (torch.int8, 256, 0.9, "sparse8"),
    (torch.int8, 256, 0.5, "dense"),
    (torch.int8, 64, 0.95, "dense"),
    (torch.bfloat16, 64, 0.9, "dense"),
    (torch.bfloat16, 256, 0.5, None),
]


@pytest.mark.parametrize(("dtype", "rows", "zeros", "form"), CHOICES)
def test_choice(dtype: torch.dtype, rows: int, zeros: float, form: str | None) -> None:
    assert cuda_forms.choose(dtype, rows, zeros) == form


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16])
def test_there_is_a_form_for_every_call(dtype: torch.dtype) -> None:
    for rows in (*range(1, 70), 10**6):
        for zeros in (0.0, 0.3, 0.88, 0.9, 0.95, 1.0):
            form = cuda_forms.choose(dtype, rows, zeros)
            assert not (form == "sparse8" and dtype != torch.int8)
            assert not (form == "sparse16" and dtype == torch.int8)
            assert not (form == "lists" and rows > 4)
            assert form is not None or (rows > 64 and dtype != torch.int8)


def test_the_table_says_where_it_comes_from() -> None:
    assert "not measured" in json.loads(cuda_forms.TABLE.read_text(encoding="utf-8"))["origin"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 2}, "schema: expected 1, got 2"), ({"form": "csr"}, "form: expected one of dense"),
     ({"x": "int4"}, "x: expected 'int8' or 'float'")],
)  # fmt: skip
def test_a_table_that_cannot_be_followed(change: dict[str, Any], message: str) -> None:
    row = {"x": "int8", "rows": [1, None], "zeros": [0, 1], "form": "dense"}
    data = {"schema": change.pop("schema", 1), "rows": [row | change]}
    with pytest.raises(ValueError, match=message):
        cuda_forms.read_table(data)


def call(**changes: Any) -> tuple:
    """The arguments of ``why_not``, on the CPU: it looks at the device last."""
    changes.setdefault("activation", FLOATS)
    x, packed = torch.ones(2, 8, dtype=torch.bfloat16), torch.zeros(4, 2, dtype=torch.uint8)
    names = ("x", "packed", "scale", "bias", "in_features", "out_features", "in_index", "out_index",
             "activation")  # fmt: skip
    return tuple(({"x": x, "packed": packed, "in_features": 8} | changes).get(name) for name in names)


@built
@pytest.mark.parametrize(
    ("changes", "why"),
    [({"x": torch.ones(2, 8)}, "torch.float32 has no kernel"), ({"in_index": torch.arange(8)}, "index sets"),
     ({"out_index": torch.arange(2)}, "index sets"), ({"x": torch.ones(0, 8, dtype=torch.float16)}, "nothing"),
     ({"x": torch.ones(2, 8).double(), "activation": Activation(True)}, "torch.float64 has no kernel"),
     ({"x": torch.ones(1, 262144), "activation": Activation(True), "in_features": 262144}, "too long for sums")],
)  # fmt: skip
def test_why_not(changes: dict[str, Any], why: str) -> None:
    assert why in (cuda.why_not(*call(**changes)) or "")


def test_a_build_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "cuda_architectures", None)
    assert "no CUDA C++ kernels" in (cuda.why_not(*call()) or "")


WEIGHT = {"form": 0, "outputs": 20, "inputs": 100, "words": 256, "starts": 0, "bases": 0, "rest": 0,
          "chunk_groups": 0, "device": 0, "multiprocessors": 132}  # fmt: skip
CALL = {"x": 512, "x_type": 1, "rows": 3, "inputs": 100, "x_row": 100, "row_scale": 0, "scale": 0, "bias": 0,
        "bias_type": 3, "y": 512, "y_type": 1, "outputs": 20, "partial": 0, "arrived": 0, "stream": 0}  # fmt: skip


@built
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"form": 4}, "form: expected 0 to 3, got 4"), ({"outputs": 0}, "shape: expected positive"),
     ({"words": 0}, "words: expected an address"), ({"words": 8}, "words: expected an address aligned to 16"),
     ({"form": 1, "starts": 4}, "chunk_groups: expected 1 to 256"), ({"form": 2}, "starts: expected an address"),
     ({"multiprocessors": 0}, "multiprocessors: expected at least 1")],
)  # fmt: skip
def test_a_weight_is_refused_by_name(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.CudaTernaryLinear(**(WEIGHT | changes))


@built
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"x": 0}, "x: expected an address"), ({"x": 513}, "x: expected an address aligned to 2"),
     ({"x_type": 3}, "x_type: expected 0 to 2"), ({"rows": 0}, "rows: expected 1 to"),
     ({"inputs": 101}, "inputs: expected 1 to 100, got 101"), ({"outputs": 21}, "outputs: expected 1 to 20"),
     ({"x_row": 99}, "x_row: expected at least 100"), ({"bias_type": 0}, "bias_type: expected a floating"),
     ({"y_type": 0}, "y_type: expected a floating"), ({"y": 0}, "y: expected an address"),
     ({"scale": 2}, "scale: expected an address aligned to 4")],
)  # fmt: skip
def test_a_call_is_refused_by_name(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.CudaTernaryLinear(**WEIGHT).run(**(CALL | changes))


@built
def test_sums_that_int8_cannot_hold_are_refused() -> None:
    weight = _C.CudaTernaryLinear(**(WEIGHT | {"inputs": 300_000}))
    with pytest.raises(ValueError, match=f"inputs: expected at most {cuda.MOST_INT8_INPUTS} of int8, got 300000"):
        weight.needs(0, 1, 300_000, 20)
    assert weight.needs(1, 1, 300_000, 20)[2] > 1


@built
@pytest.mark.parametrize(
    ("arguments", "message"),
    [((b"\0" * 8, 4, 8, 5, 1), "form: expected 0 to 3"), ((b"\0" * 7, 4, 8, 0, 1), "packed: expected 8 bytes, got 7"),
     ((b"", 0, 8, 0, 1), "shape: expected positive"), ((b"\0" * 8, 4, 8, 0, 0), "multiprocessors: expected at least")],
)  # fmt: skip
def test_packing_is_refused_by_name(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.cuda_pack(*arguments)


@built
@pytest.mark.parametrize("form", cuda_forms.FORMS.values())
def test_packing_does_not_depend_on_threads(form: int) -> None:
    codes = pack_signs(torch.randint(-1, 2, (700, 130), dtype=torch.int8)).numpy().tobytes()
    assert _C.cuda_pack(codes, 700, 130, form, 132, 3) == _C.cuda_pack(codes, 700, 130, form, 132)


@built
def test_packed_sizes() -> None:
    """Bytes per weight: a quarter, dense; and a quarter with the 2:4 metadata beside a rest of a few in a thousand."""
    shape = 256, 3840
    signs = torch.randint(0, 2, shape, dtype=torch.int8) * 2 - 1
    codes = pack_signs(torch.where(torch.rand(shape) < 0.9, 0, signs).to(torch.int8)).numpy().tobytes()
    for form in cuda_forms.FORMS.values():
        words, _, _, rest, chunk = _C.cuda_pack(codes, *shape, form, 132)
        if form != cuda_forms.FORMS["lists"]:
            assert len(words) == 256 * 3840 // 4
            assert chunk == 0
        else:
            assert len(words) < 256 * 3840 / 8 * 1.2
        assert (0 < len(rest) < 256 * 3840 / 4 * 0.2) == (form > 1)
