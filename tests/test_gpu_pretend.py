"""What a card would run for the first time, with one that is only pretended: suites with their timing, and tuning.

CUDA's runtime is played by stand-ins, the operators run on the CPU; the launches of the backends are checked against
their signatures. Times are of nothing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dynkern import tune
from dynkern.bench import gpu_check, gpu_peers, gpu_suites
from dynkern.bench.gpu_suites import OURS, Place
from dynkern.ops.quantize import Activation
from dynkern.ops.ternary_linear import reference

triton = pytest.importorskip("triton")

import ahead  # noqa: E402

from dynkern.ops.sliced_conv2d import triton as sliced  # noqa: E402
from dynkern.ops.ternary_conv2d import triton as ternary  # noqa: E402
from dynkern.ops.ternary_linear import cuda as linear_cuda  # noqa: E402
from dynkern.ops.ternary_linear import triton as linear_triton  # noqa: E402


class Event:
    """Each is recorded a millisecond after the one before."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 1.0
        self.at = Event.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


class Graph:
    """Replays nothing; counts."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1


class Stream:
    cuda_stream = 0

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def nothing(*_: Any) -> Iterator[None]:
    yield


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what the suites use of torch.cuda."""
    for name, value in {
        "Event": Event, "CUDAGraph": Graph, "Stream": Stream, "stream": nothing, "graph": nothing,
        "current_stream": lambda *_: Stream(), "synchronize": lambda: None, "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu_suites.gpu_timer, "MOST_COPIES", 2)
    monkeypatch.setattr(gpu_suites, "ROUNDS", 2)
    monkeypatch.setattr(gpu_suites, "QUICK_ROUNDS", 2)


def bound(function: Callable[..., Any], calls: list[Activation]) -> Callable[..., torch.Tensor]:
    """Takes what ``function`` takes, and gives the reference's result."""
    signature = inspect.signature(function)

    def run(*args: Any, **options: Any) -> torch.Tensor:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        how = given.arguments["activation"]
        calls.append(how)
        if how.int8:
            return reference.ternary_linear_int8(*args[:8], how.scale, how.per_row)
        return reference.ternary_linear(*args[:8])

    return run


@pytest.mark.parametrize("suite", ["width", "sparsity", "gemlite", "models"])
def test_a_suite_with_times(suite: str, card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant has a row eager and in a graph, with times and ratios; the launches of ours are well formed."""
    calls: list[Activation] = []
    monkeypatch.setattr(linear_triton, "run", bound(linear_triton.run, calls))
    monkeypatch.setattr(linear_cuda, "run", bound(linear_cuda.run, calls))
    monkeypatch.setattr(gpu_suites.gpu_cases._C, "cuda_architectures", "90a-real")
    monkeypatch.setattr(gpu_peers, "bit_linear", lambda signs: lambda x: torch.nn.functional.linear(x, signs))
    place = Place("cpu", quick=suite in ("width", "models"), small=True)
    rows = [row for found in gpu_suites.run(suite, place, lambda: 1.0) for row in found]
    assert rows
    wrong = [row for row in rows if row["status"] != "ok"]
    assert not wrong, wrong[0]
    assert {row["mode"] for row in rows} == {"eager", "graph"}
    assert all(row["median_s"] > 0 and row["speedup"] > 0 for row in rows)
    variants = {row["variant"] for row in rows}
    if suite == "sparsity":
        forms = {f"{OURS}, CUDA {form}" for form in ("dense", "lists", "sparse8", "sparse16")}
        assert variants == {OURS, f"{OURS}, Triton", "cuBLAS, bfloat16", "cuDNN, bfloat16", *forms}
        assert {how.int8 for how in calls} == {True, False}
    if suite == "gemlite":
        assert variants == {OURS, "cuBLAS, bfloat16", "gemlite, 1.58 bits"}
    assert Graph.replays > 0


def test_a_suite_whose_time_is_over_says_so(card: None) -> None:
    rows = [row for found in gpu_suites.run("width", Place("cpu", True, small=True), lambda: -1.0) for row in found]
    assert {(row["status"], row["reason"], row["median_s"]) for row in rows} == {("left out", "no time was left", None)}


def test_gemlite_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class and arguments of gemlite's helper; without it there is a reason and no row."""
    assert "gemlite" in str(gpu_suites.why_not("gemlite"))
    made: list[Any] = []

    class A16W158_INT:
        def __init__(self, device: str = "cuda:0", dtype: Any = None, fp32_scale: bool = True) -> None:
            made.append((device, dtype))

        def from_weights(self, weight: torch.Tensor, weight_scale: torch.Tensor, bias: Any = None) -> Any:
            assert weight_scale.item() == 1
            return lambda x: x @ weight.t()

    helper = ModuleType("gemlite.helper")
    helper.A16W158_INT = A16W158_INT  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gemlite", ModuleType("gemlite"))
    monkeypatch.setitem(sys.modules, "gemlite.helper", helper)
    assert gpu_suites.why_not("gemlite") is None
    layer = gpu_peers.bit_linear(torch.eye(3, dtype=torch.bfloat16))
    assert layer(torch.ones(1, 3, dtype=torch.bfloat16)).tolist() == [[1, 1, 1]]
    assert made == [("cpu", torch.bfloat16)]
    del helper.A16W158_INT
    assert "none of A16W158_INT" in str(gpu_suites.why_not("gemlite"))


def test_the_check_runs() -> None:
    gpu_check.check("cpu")


def test_tuning_measures_every_layer(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's call, with a configuration and by PyTorch, at both widths: the launches are recorded."""
    recorders = {
        "conv_kernel": (sliced, ahead.Recorder(sliced.conv_kernel)),
        "ternary_kernel": (ternary, ahead.Recorder(ternary.ternary_kernel)),
    }
    for name, (module, recorder) in recorders.items():
        monkeypatch.setattr(module, name, recorder)
    for layer in tune.layers():
        small = SimpleNamespace(**{**vars(layer), "pixels": min(layer.pixels, 128 * 4), "inputs": 64, "outputs": 64})
        for full in (True, False):
            config = next(tune.candidates(layer))
            make, nbytes = tune._calls(small, config, full, "cpu")  # type: ignore[arg-type]
            assert nbytes > 0
            with torch.inference_mode():
                make()()
            launched = recorders["ternary_kernel" if layer.op.startswith("ternary") else "conv_kernel"][1]
            assert launched.options.pop("BLOCK_P") == config.block_p
            make, _ = tune._calls(small, None, full, "cpu")  # type: ignore[arg-type]
            assert isinstance(make()(), torch.Tensor)
    monkeypatch.setattr(tune, "_calls", lambda *_: (lambda: lambda: None, 2**27))
    assert tune.on_card(layer, config, True) > 0
