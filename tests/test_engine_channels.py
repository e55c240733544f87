"""Convolutions whose lanes are output channels: images whose rows do not fill vectors of pixels, and strided ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern.engine import native, reference
from dynkern.engine.plan import Activation, Conv2d, Epilogue, Plan, Value, Weight

EPS = torch.finfo(torch.float32).eps
WINOGRAD_GROWTH = 190  # see test_engine_winograd.py


def convolution(x: Value, y: Value, weight: Weight, kernel: int, stride: int, epilogue: Epilogue) -> Plan:
    """One convolution with `same` padding; a residual, if any, is value 2, a 1x1 convolution of the input."""
    plan = Plan(0, 1, 4, [x, y])
    if epilogue.residual is not None:
        plan.values.append(y)
        plan.steps.append(Conv2d(0, 2, Weight("r"), (stride, stride, 0, 0, 0, 0, 1, 1)))
    p = kernel // 2
    plan.steps.append(Conv2d(0, 1, weight, (stride, stride, p, p, p, p, 1, 1), 1, epilogue))
    return plan


def check(plan: Plan, weights: dict[str, Tensor], x: Tensor, threads: int) -> native.Program:
    """Against float64, within the rounding that the terms allow."""
    program = native.Program(native.Store(weights), plan)
    y = program.run(x, threads)
    assert y is not None
    expected = reference.run(plan, {k: w.double() for k, w in weights.items()}, x.double())
    w = weights["w"]
    terms = w[0].numel() + 12
    size = float(x.abs().max()) * float(w.abs().sum(dim=(1, 2, 3)).max()) * 2 + 2
    growth = WINOGRAD_GROWTH if w.shape[2] == 3 else 0
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=float(EPS * (terms**0.5 * 4 + growth) * size))
    return program


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, dict[str, Tensor], Tensor]:
    kernel, stride = draw(st.sampled_from([1, 1, 3, 3, 5])), draw(st.sampled_from([1, 2]))
    inputs = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 130])))
    outputs = draw(st.one_of(st.integers(14, 50), st.sampled_from([64, 96])))
    height = draw(st.integers(1, 15))
    width = draw(st.sampled_from([7, 7, 8, 13, 14, 14, 15, 21, 28, 35]))
    odd = [draw(st.integers(0, stride - 1)) for _ in range(2)]
    x = Value(inputs, height * stride - odd[0], width * stride - odd[1])
    y = Value(outputs, height, width)
    full = (outputs + draw(st.integers(0, 3)), inputs + draw(st.integers(0, 20)))
    chosen = None
    if draw(st.booleans()):
        chosen = tuple(draw(st.permutations(range(full[1])))[:inputs])
    torch.manual_seed(draw(st.integers(0, 99)))
    epilogue = Epilogue(
        torch.rand(outputs) if draw(st.booleans()) else None,
        torch.randn(outputs) if draw(st.booleans()) else None,
        2 if draw(st.booleans()) else None,
        None,
        draw(st.sampled_from([Activation(), Activation("clamp"), Activation("clamp", -0.5, 1.0), Activation("silu")])),
    )
    weights = {"w": torch.randn(*full, kernel, kernel), "r": torch.randn(outputs, inputs, 1, 1)}
    plan = convolution(x, y, Weight("w", chosen), kernel, stride, epilogue)
    return plan, weights, torch.randn(draw(st.integers(1, 2)), x.channels, x.height, x.width)


@settings(max_examples=100)
@given(cases(), st.integers(1, 3))
def test_against_float64(isa: str, case: tuple[Plan, dict[str, Tensor], Tensor], threads: int) -> None:
    check(*case, threads)


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "kernel", "stride", "winograd"),
    [
        (96, 160, 7, 1, 1, False),
        (64, 64, 14, 1, 1, False),
        (32, 64, 28, 1, 2, False),
        (3, 64, 28, 7, 2, False),
        (130, 48, 7, 3, 1, True),
        (64, 64, 14, 3, 1, True),
        (70, 16, 28, 3, 1, True),
        (16, 32, 56, 3, 1, True),
    ],
)
def test_takes_the_layers_it_is_for(
    isa: str, inputs: int, outputs: int, size: int, kernel: int, stride: int, winograd: bool
) -> None:
    torch.manual_seed(0)
    x, y = Value(inputs, size * stride, size * stride), Value(outputs, size, size)
    plan = convolution(x, y, Weight("w"), kernel, stride, Epilogue(activation=Activation("clamp")))
    weights = {"w": torch.randn(outputs, inputs, kernel, kernel)}
    for threads in (1, 2, 5):
        program = check(plan, weights, torch.randn(1, inputs, x.height, x.width), threads)
    (step,) = program.describe()
    wide = isa.startswith("avx512")
    assert ("lanes of channels" in step["step"]) == wide
    assert not wide or ("winograd" in step["step"]) == winograd


def test_one_store_for_all_widths(isa: str) -> None:
    """Whatever kernel a width takes, the weight is there once."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(64, 64, 3, 3)}
    store = native.Store(weights)
    before = store.nbytes
    for channels in (8, 16, 40, 64):
        value = Value(channels, 14, 14)
        plan = convolution(value, value, Weight("w"), 3, 1, Epilogue())
        x = torch.randn(1, channels, 14, 14)
        y = native.Program(store, plan).run(x, 1)
        assert y is not None
        w = weights["w"][:channels, :channels]
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1), rtol=0, atol=2e-3)
    assert store.nbytes == before
