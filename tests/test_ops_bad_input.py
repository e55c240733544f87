"""Wrong arguments: an error that names the argument, from the native path and from the traced one alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dynkern import ops
from dynkern.ops import library

X = torch.randn(2, 6, 9, 9)
W = torch.randn(8, 6, 3, 3)
DEPTHWISE = torch.randn(6, 1, 3, 3)
ROWS = torch.randn(4, 6)
MATRIX = torch.randn(8, 6)


def index(*entries: int) -> Tensor:
    return torch.tensor(entries, dtype=torch.int64)


CONV_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x: expected a tensor"),
    ({"x": torch.randn(6, 9)}, ValueError, "x: expected 4 dimensions"),
    ({"x": X.long()}, TypeError, "x: expected a floating-point dtype"),
    ({"x": torch.randn(2, 7, 9, 9)}, ValueError, "x: expected 1 to 6 channels"),
    ({"x": torch.randn(2, 0, 9, 9)}, ValueError, "x: expected 1 to 6 channels"),
    ({"x": torch.randn(2, 6, 2, 9)}, ValueError, "x: padded height 2 is smaller"),
    ({"x": torch.randn(2, 6, 9, 2)}, ValueError, "x: padded width 2 is smaller"),
    ({"x": X.to_sparse()}, ValueError, "x: expected a dense"),
    ({"weight": W[0]}, ValueError, "weight: expected 4 dimensions"),
    ({"weight": None}, TypeError, "weight: expected a tensor"),
    ({"weight": W.double()}, TypeError, "weight: expected torch.float32"),
    ({"weight": torch.randn(8, 6, 0, 3)}, ValueError, "weight: expected a kernel of at least 1x1"),
    ({"bias": torch.randn(7)}, ValueError, "bias: expected 8 elements"),
    ({"bias": torch.randn(8, 1)}, ValueError, "bias: expected 1 dimensions"),
    ({"bias": torch.randn(8).double()}, TypeError, "bias: expected torch.float32"),
    ({"stride": 0}, ValueError, "stride: expected at least 1"),
    ({"stride": (1, 2, 3)}, ValueError, "stride: expected an integer or two"),
    ({"stride": 1.5}, (TypeError, ValueError), "stride: expected an integer"),
    ({"dilation": 0}, ValueError, "dilation: expected at least 1"),
    ({"padding": -1}, ValueError, "padding: expected at least 0"),
    ({"padding": "full"}, ValueError, "padding: expected 'same', 'valid'"),
    ({"padding": "same", "stride": 2}, ValueError, "padding: 'same' needs stride 1"),
    ({"padding": ((1, 1), (1,), (1, 1))}, ValueError, "padding: expected ((top, bottom), (left, right))"),
    ({"groups": 0}, ValueError, "groups: expected a divisor"),
    ({"groups": 3}, ValueError, "groups: expected a divisor"),
    ({"out_channels": 0}, ValueError, "out_channels: expected 1 to 8"),
    ({"out_channels": 9}, ValueError, "out_channels: expected 1 to 8"),
    ({"out_channels": 2.0}, TypeError, "out_channels: expected an integer"),
    ({"out_channels": True}, TypeError, "out_channels: expected an integer"),
    ({"out_channels": 2, "out_index": index(1, 2)}, ValueError, "out_channels, out_index: expected at most one"),
    ({"out_index": index()}, ValueError, "out_index: expected at least one channel"),
    ({"out_index": torch.tensor([1.0])}, ValueError, "out_index: expected a 1-D int64"),
    ({"out_index": [1, 2]}, TypeError, "out_index: expected an int64 tensor"),
    ({"in_index": index(0, 1)}, ValueError, "in_index: expected one entry per channel"),
    ({"in_index": index(*range(7))}, ValueError, "in_index: expected at most 6"),
    ({"weight": DEPTHWISE, "groups": 6, "out_index": index(0)}, ValueError, "out_index: expected None with groups"),
    ({"weight": DEPTHWISE, "groups": 6, "out_channels": 5}, ValueError, "out_channels: expected 6"),
    ({"weight": W[:, :3], "groups": 2, "x": X[:, :4]}, ValueError, "x: expected a multiple of 3"),
    ({"weight": W[:, :3], "groups": 2, "in_index": index(*range(6))}, ValueError, "in_index: with groups"),
]  # fmt: skip

LINEAR_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x: expected a tensor"),
    ({"x": torch.tensor(1.0)}, ValueError, "x: expected at least one dimension"),
    ({"x": torch.randn(4, 7)}, ValueError, "x: expected 1 to 6"),
    ({"x": torch.randn(4, 0)}, ValueError, "x: expected 1 to 6"),
    ({"x": ROWS.int()}, TypeError, "x: expected a floating-point dtype"),
    ({"weight": W}, ValueError, "weight: expected 2 dimensions"),
    ({"weight": MATRIX.double()}, TypeError, "weight: expected torch.float32"),
    ({"bias": torch.randn(9)}, ValueError, "bias: expected 8 elements"),
    ({"out_features": 9}, ValueError, "out_features: expected 1 to 8"),
    ({"out_features": 0}, ValueError, "out_features: expected 1 to 8"),
    ({"out_features": -1}, ValueError, "out_features: expected 1 to 8"),
    ({"out_features": 1, "out_index": index(1)}, ValueError, "out_features, out_index: expected at most one"),
    ({"out_index": index()}, ValueError, "out_index: expected at least one"),
    ({"in_index": index(1)}, ValueError, "in_index: expected one entry per channel"),
]


def raises(call: Callable[[], Tensor], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def both_ways(errors: list) -> list:
    """Every case as inference runs it, and those whose ``x`` can be differentiated as autograd traces it."""
    traced = [e for e in errors if "x" not in e[0] or (isinstance(e[0]["x"], Tensor) and not e[0]["x"].is_sparse)]
    return [(*e, False) for e in errors] + [(*e, True) for e in traced]


@pytest.mark.parametrize(("arguments", "kind", "message", "traced"), both_ways(CONV_ERRORS))
def test_sliced_conv2d(arguments: dict[str, Any], kind: type[Exception], message: str, traced: bool) -> None:
    given = {"x": X, "weight": W, **arguments}
    if traced:
        given["x"] = given["x"].clone().requires_grad_(given["x"].is_floating_point())
    raises(lambda: ops.sliced_conv2d(**given), kind, message)


@pytest.mark.parametrize(("arguments", "kind", "message", "traced"), both_ways(LINEAR_ERRORS))
def test_sliced_linear(arguments: dict[str, Any], kind: type[Exception], message: str, traced: bool) -> None:
    given = {"x": ROWS, "weight": MATRIX, **arguments}
    if traced:
        given["x"] = given["x"].clone().requires_grad_(given["x"].is_floating_point())
    raises(lambda: ops.sliced_linear(**given), kind, message)


TERNARY_CONV = ops.TernaryWeight.pack(W.sign())
TERNARY_MATRIX = ops.TernaryWeight.pack(MATRIX.sign())


@pytest.mark.parametrize(("arguments", "kind", "message"), [e for e in CONV_ERRORS if "weight" not in e[0]])
def test_ternary_conv2d(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    raises(lambda: ops.ternary_conv2d(**{"x": X, "weight": TERNARY_CONV, **arguments}), kind, message)


@pytest.mark.parametrize(("arguments", "kind", "message"), [e for e in LINEAR_ERRORS if "weight" not in e[0]])
def test_ternary_linear(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    raises(lambda: ops.ternary_linear(**{"x": ROWS, "weight": TERNARY_MATRIX, **arguments}), kind, message)


def test_ternary_weight_of_the_wrong_kind() -> None:
    raises(lambda: ops.ternary_conv2d(X, W), TypeError, "weight: expected a TernaryWeight")
    raises(lambda: ops.ternary_conv2d(X, TERNARY_MATRIX), ValueError, "weight: expected 4 dimensions")
    raises(lambda: ops.ternary_linear(ROWS, TERNARY_CONV), ValueError, "weight: expected 2 dimensions")


@pytest.mark.parametrize("entry", [-1, 6, 2**40, -(2**40)])
def test_index_out_of_range(entry: int) -> None:
    """Values are looked at by the native code, before a kernel could follow them out of its memory."""
    wrong, right = index(0, 1, 2, entry), index(0, 1)
    for run in (
        lambda: ops.sliced_conv2d(X[:, :4], W, in_index=wrong),
        lambda: ops.sliced_conv2d(X[:, :4], DEPTHWISE, groups=6, in_index=wrong),
        lambda: ops.ternary_conv2d(X[:, :4], TERNARY_CONV, in_index=wrong),
        lambda: ops.sliced_linear(ROWS[:, :4], MATRIX, in_index=wrong),
        lambda: ops.ternary_linear(ROWS[:, :4], TERNARY_MATRIX, in_index=wrong),
    ):
        raises(run, ValueError, f"in_index: expected channels 0 to 5, got {entry}")
    too_far = index(0, entry + 2 if entry > 0 else entry)
    raises(lambda: ops.sliced_conv2d(X, W, out_index=too_far), ValueError, "out_index: expected channels 0 to 7")
    raises(
        lambda: ops.sliced_linear(ROWS, MATRIX, out_index=too_far), ValueError, "out_index: expected channels 0 to 7"
    )
    assert ops.sliced_conv2d(X, W, out_index=right).shape[1] == 2


def test_fake_tensors_are_checked_too() -> None:
    with FakeTensorMode() as mode:
        x, w = mode.from_tensor(X), mode.from_tensor(W)
        assert ops.sliced_conv2d(x, w, out_channels=3).shape == (2, 3, 7, 7)
        raises(lambda: ops.sliced_conv2d(x, w, out_channels=9), ValueError, "out_channels: expected 1 to 8")


def test_other_dtypes_run_in_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    """The fallback is right, contiguous, and announced once."""
    library.fallback.cache_clear()
    x, w = X.double(), W.double()
    for _ in range(2):
        y = ops.sliced_conv2d(x[:, :4], w, out_channels=3)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x[:, :4], w[:3, :4]))
    assert y.is_contiguous()
    assert [r.message for r in caplog.records].count(
        "sliced_conv2d: no dynkern kernel for torch.float64 on cpu; PyTorch runs it on the active slice"
    ) == 1


def test_strict_refuses_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    library.fallback.cache_clear()
    monkeypatch.setenv("DYNKERN_STRICT", "1")
    raises(lambda: ops.sliced_linear(ROWS.double(), MATRIX.double()), RuntimeError, "DYNKERN_STRICT is set")
    library.fallback.cache_clear()
