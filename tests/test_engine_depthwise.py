"""Depthwise convolutions in plans, alone and behind the 1x1 convolution that makes their input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern.engine import native, reference
from dynkern.engine.plan import Activation, Conv2d, Epilogue, Plan, Pointwise, Value, Weight

EPS = torch.finfo(torch.float32).eps
ACTIVATIONS = (Activation(), Activation("clamp", 0.0, 6.0), Activation("hardswish"), Activation("gelu"))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Plan, dict[str, Tensor]]:
    """(1x1 convolution,) depthwise convolution with or without a residual, 1x1 convolution."""
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (5, 5), (1, 1), (7, 7), (2, 3)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 2), (1, 2), (3, 1), (1, 3)]))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if draw(st.booleans()) else (1, 1)
    padding = [draw(st.integers(0, 4)) for _ in range(4)]
    if draw(st.booleans()):
        padding = [(d * (k - 1) + i) // 2 for d, k in zip(dilation, kernel, strict=True) for i in (0, 1)]
    sizes = st.one_of(st.integers(1, 18), st.sampled_from([28, 31, 32, 33, 48, 56]))
    extent = [dilation[i] * (kernel[i] - 1) + 1 - sum(padding[2 * i : 2 * i + 2]) for i in (0, 1)]
    height, width = (max(1, n, draw(sizes)) for n in extent)
    out = [(n - e) // s + 1 for n, e, s in zip((height, width), extent, stride, strict=True)]
    full, multiplier = draw(st.sampled_from([2, 3, 7, 13, 40])), draw(st.sampled_from([1, 1, 2]))
    active = draw(st.integers(2, full))
    index = tuple(draw(st.permutations(range(full)))[:active]) if draw(st.booleans()) else None

    def epilogue(channels: int, residual: int | None = None) -> Epilogue:
        vectors = [torch.randn(channels) if draw(st.booleans()) else None for _ in range(3)]
        scale = vectors[2] if residual is not None else None
        return Epilogue(vectors[0], vectors[1], residual, scale, draw(st.sampled_from(ACTIVATIONS)))

    torch.manual_seed(draw(st.integers(0, 2**16)))
    plan = Plan(0, 0, 4, [Value(3, height, width)])
    weights = {"wide": torch.randn(full, 3, 1, 1), "depth": torch.randn(full * multiplier, 1, *kernel)}
    weights["last"] = torch.randn(4, active * multiplier, 1, 1)
    plan.values += [Value(active, height, width), Value(active * multiplier, *out)]
    plan.steps.append(Conv2d(0, 1, Weight("wide", None, index), (1, 1, 0, 0, 0, 0, 1, 1), 1, epilogue(active)))
    geometry = (*stride, *padding, *dilation)
    residual = 1 if multiplier == 1 and out == [height, width] and draw(st.booleans()) else None
    deep = epilogue(active * multiplier, residual)
    plan.steps.append(Conv2d(1, 2, Weight("depth", index), geometry, active, deep))
    plan.values.append(Value(4, *out))
    plan.steps.append(Conv2d(2, 3, Weight("last"), (1, 1, 0, 0, 0, 0, 1, 1), 1, epilogue(4)))
    plan.output = 3
    if draw(st.booleans()):
        # The wide activation is used once more, so that it must be there whole.
        plan.values += [Value(active, height, width)]
        plan.steps.append(Pointwise(1, 4, Epilogue(None, None, None)))
        plan.output = 4 if draw(st.booleans()) else 3
    return plan, weights


def check(plan: Plan, weights: dict[str, Tensor], x: Tensor, threads: int) -> None:
    y = native.Program(native.Store(weights), plan).run(x, threads)
    double = {name: w.double() for name, w in weights.items()}
    expected = reference.run(plan, double, x.double())
    terms = sum(w[0].numel() for w in weights.values())
    # What the results are at most if no product is negative.
    size = reference.run(_absolute(plan), {name: w.abs() for name, w in double.items()}, x.double().abs()).max()
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=float(EPS * (terms + 20) * size.clamp(min=1)))


def _absolute(plan: Plan) -> Plan:
    def positive(e: Epilogue) -> Epilogue:
        scale, shift, weight = (None if v is None else v.abs().double() for v in (e.scale, e.shift, e.residual_scale))
        return Epilogue(scale, shift, e.residual, weight)

    steps = [type(s)(**{**vars(s), "epilogue": positive(s.epilogue)}) for s in plan.steps]
    return Plan(plan.input, plan.output, plan.output_dims, plan.values, steps)


@settings(max_examples=200)
@given(blocks(), st.sampled_from([1, 2, 5]), st.sampled_from([1, 2]))
def test_blocks(isa: str, block: tuple[Plan, dict[str, Tensor]], threads: int, batch: int) -> None:
    plan, weights = block
    value = plan.values[0]
    check(plan, weights, torch.randn(batch, value.channels, value.height, value.width), threads)


@pytest.mark.parametrize(("stride", "size"), [(1, 7), (1, 8), (2, 14), (2, 9), (1, 33)])
def test_the_depthwise_kernel_runs(stride: int, size: int) -> None:
    out = (size - 1) // stride + 1
    plan = Plan(0, 1, 4, [Value(6, size, size), Value(6, out, out)])
    plan.steps.append(Conv2d(0, 1, Weight("w"), (stride, stride, 1, 1, 1, 1, 1, 1), 6))
    (step,) = native.Program(native.Store({"w": torch.randn(6, 1, 3, 3)}), plan).describe()
    assert step["step"] == f"depthwise_conv2d 3x3 stride {stride}, in place"


@pytest.mark.parametrize("used_twice", [False, True])
def test_the_convolution_before_it_runs_with_it(used_twice: bool) -> None:
    plan = Plan(0, 2, 4, [Value(3, 56, 56), Value(40, 56, 56), Value(40, 28, 28)])
    plan.steps.append(Conv2d(0, 1, Weight("wide"), (1, 1, 0, 0, 0, 0, 1, 1)))
    plan.steps.append(Conv2d(1, 2, Weight("depth"), (2, 2, 1, 1, 1, 1, 1, 1), 40))
    if used_twice:
        plan.output = 1
    store = native.Store({"wide": torch.randn(40, 3, 1, 1), "depth": torch.randn(40, 1, 3, 3)})
    program = native.Program(store, plan)
    rows = program.describe()
    assert len(rows) == (2 if used_twice else 1)
    if not used_twice:
        assert rows[0]["reads"] == [0]
        assert rows[0]["writes"] == 2
        assert "conv2d 1x1 stride 1, in place; depthwise_conv2d 3x3 stride 2, in place; " in rows[0]["step"]
        # All of the channels between them are never there at once.
        assert program.arena_bytes < 40 * 56 * 56 * 4
