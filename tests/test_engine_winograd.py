"""3x3 convolutions of stride 1 in plans, which the engine computes by Winograd's algorithm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern.engine import native, reference
from dynkern.engine.plan import Activation, Conv2d, Epilogue, Plan, Value, Weight

EPS = torch.finfo(torch.float32).eps
PAD = (1, 1, 1, 1, 1, 1, 1, 1)
# Largest row sums of |A|, |B| and |G| of F(4,3), the last two over a tile: what a product can grow to before the
# sums of the output transform cancel it again.
GROWTH = 19 * 10 * 1


def convolution(
    outputs: int, inputs: int, height: int, width: int, weight: Weight | None = None, epilogue: Epilogue | None = None
) -> Plan:
    """One convolution; a residual, if any, is the input."""
    plan = Plan(0, 1, 4, [Value(inputs, height, width), Value(outputs, height, width)])
    plan.steps.append(Conv2d(0, 1, weight or Weight("w"), PAD, 1, epilogue or Epilogue()))
    return plan


def check(plan: Plan, weight: Tensor, x: Tensor, threads: int) -> None:
    """Against float64, within the rounding that the terms and the transforms' growth allow."""
    y = native.Program(native.Store({"w": weight}), plan).run(x, threads)
    assert y is not None
    expected = reference.run(plan, {"w": weight.double()}, x.double())
    (step,) = plan.steps
    assert isinstance(step, Conv2d)
    e = step.epilogue
    sums = torch.nn.functional.conv2d(x.abs().double(), reference_slice(step.weight, weight, plan).abs(), padding=1)
    scale = 1.0 if e.scale is None else float(e.scale.abs().max())
    size = scale * float(sums.max()) + float(x.abs().max()) + 1
    terms = 3 * plan.values[0].channels + 12
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=float(EPS * (terms + GROWTH) * size))


def reference_slice(which: Weight, weight: Tensor, plan: Plan) -> Tensor:
    """The active part of the weight."""
    rows = weight[: plan.values[1].channels] if which.out_index is None else weight[list(which.out_index)]
    columns = rows[:, : plan.values[0].channels] if which.in_index is None else rows[:, list(which.in_index)]
    return columns.double()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, Tensor]:
    inputs, outputs = (draw(st.one_of(st.integers(1, 40), st.sampled_from([15, 16, 17, 33, 64]))) for _ in range(2))
    size = st.one_of(st.integers(1, 19), st.sampled_from([28, 31, 32, 33, 56]))
    height, width = draw(size), draw(size)
    full = (outputs + draw(st.integers(0, 3)), inputs + draw(st.integers(0, 20)))
    index: list[tuple[int, ...] | None] = [None, None]
    for axis, count in enumerate((outputs, inputs)):
        if draw(st.booleans()):
            index[axis] = tuple(draw(st.permutations(range(full[axis])))[:count])
    torch.manual_seed(draw(st.integers(0, 2**16)))
    vectors = [torch.randn(outputs) if draw(st.booleans()) else None for _ in range(2)]
    residual = 0 if inputs == outputs and draw(st.booleans()) else None
    activation = draw(st.sampled_from([Activation(), Activation("clamp", 0.0, 6.0), Activation("hardswish")]))
    epilogue = Epilogue(vectors[0], vectors[1], residual, None, activation)
    plan = convolution(outputs, inputs, height, width, Weight("w", index[1], index[0]), epilogue)
    return plan, torch.randn(*full, 3, 3)


@settings(max_examples=150)
@given(cases(), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
def test_against_float64(isa: str, case: tuple[Plan, Tensor], threads: int, batch: int) -> None:
    plan, weight = case
    value = plan.values[0]
    check(plan, weight, torch.randn(batch, value.channels, value.height, value.width), threads)


@pytest.mark.parametrize(("channels", "size"), [(4, 32), (16, 32), (32, 16), (64, 8), (64, 56), (128, 28), (256, 7)])
def test_layers_of_resnets(isa: str, channels: int, size: int) -> None:
    plan = convolution(channels, channels, size, size)
    check(plan, torch.randn(channels, channels, 3, 3) / channels, torch.randn(1, channels, size, size), 1)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("channels", "size"), [(16, 32), (24, 16), (64, 8), (64, 7)])
def test_threads_change_nothing(isa: str, channels: int, size: int, threads: int) -> None:
    """Tiles of rows and the order of sums are the same, however many threads share them."""
    program = native.Program(
        native.Store({"w": torch.randn(channels, channels, 3, 3)}), convolution(channels, channels, size, size)
    )
    x = torch.randn(1, channels, size, size)
    torch.testing.assert_close(program.run(x, threads), program.run(x, 1), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_bad_pixel_stays_in_its_tile(isa: str, bad: float) -> None:
    """Rows that no tile of the result needs do not reach it, whatever lies there."""
    x = torch.randn(1, 5, 14, 9)
    program = native.Program(native.Store({"w": torch.randn(3, 5, 3, 3)}), convolution(3, 5, 14, 9))
    good = program.run(x, 1)
    x[0, 2, 10, 4] = bad
    y = program.run(x, 1)
    assert y is not None
    assert good is not None
    torch.testing.assert_close(y[:, :, :8], good[:, :, :8], rtol=0, atol=0)
    assert not torch.isfinite(y[:, :, 9:12, 3:6]).all()


def test_the_weight_is_kept_once() -> None:
    """In the order of the kernel or as it came, and not twice; a layer of another stride sees it right."""
    weight = torch.randn(32, 32, 3, 3)
    store = native.Store({"w": weight})
    before = store.nbytes
    stride_one = native.Program(store, convolution(32, 32, 8, 8))
    assert stride_one.describe()[0]["step"].endswith("winograd")
    assert store.nbytes == before == weight.numel() * 4
    strided = convolution(32, 32, 8, 8)
    strided.values[1] = Value(32, 4, 4)
    strided.steps[0] = Conv2d(0, 1, Weight("w"), (2, 2, 1, 1, 1, 1, 1, 1))
    x = torch.randn(1, 32, 8, 8)
    expected = reference.run(strided, {"w": weight}, x)
    torch.testing.assert_close(native.Program(store, strided).run(x, 1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        stride_one.run(x, 1), reference.run(convolution(32, 32, 8, 8), {"w": weight}, x), rtol=1e-4, atol=1e-4
    )


@settings(max_examples=60)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 9), st.integers(1, 20), st.sampled_from([2, 3, 4]))
def test_threads_that_share_outputs(inputs: int, outputs: int, height: int, width: int, threads: int) -> None:
    """Small images: each thread has some outputs, whose planes must fit the memory that was planned for all."""
    torch.manual_seed(0)
    store = native.Store({"w": torch.randn(outputs, inputs, 3, 3)})
    program = native.Program(store, convolution(outputs, inputs, height, width))
    x = torch.randn(1, inputs, height, width)
    torch.testing.assert_close(program.run(x, threads), program.run(x, 1), rtol=0, atol=0)
