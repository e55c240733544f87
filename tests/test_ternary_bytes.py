"""Ternary convolutions of the engine on bytes whose channels are neighbours, against the reference, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dynkern as dk
from dynkern import _C
from dynkern.engine import native, reference
from dynkern.engine import quantized as planning
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.lower import Lowered, lower
from dynkern.engine.plan import Activation, Conv2d, Element, Epilogue, Plan, Pointwise, Value, Weight
from dynkern.engine.quantized_weight import QuantizedWeight, SkippingWeight
from dynkern.nn.selection import Key
from dynkern.ops import TernaryWeight

IMAGE = (3, 32, 32)


def random_signs(shape: tuple[int, ...], zeros: float) -> Tensor:
    signs = torch.where(torch.rand(shape) < 0.5, 1, -1)
    return torch.where(torch.rand(shape) < zeros, 0, signs).to(torch.int8)


def both(plan: Plan, weights: dict, x: Tensor, threads: int = 1) -> Tensor:
    """The native result, which is the reference's to the bit under every instruction set."""
    right = reference.run(plan, weights, x)
    before = _C.isa()
    try:
        for isa in _C.isas():
            _C.force_isa(isa)
            assert torch.equal(native.Program(native.Store(weights), plan).run(x, threads), right), isa
    finally:
        _C.force_isa(before)
    return right


def plan_of(
    signs: Tensor,
    x: Value,
    y: Value,
    geometry: tuple[int, ...],
    residual: Element | None = None,
    activation: Activation | None = None,
    scale: float | None = None,
) -> tuple[Plan, dict]:
    """Floats that are bytes, as such; a convolution with ``signs``, and its bytes as floats again."""
    c, o = x.channels, y.channels
    as_bytes = Epilogue(torch.ones(c), torch.zeros(c), activation=Activation("clamp", 0, 255))
    values, steps = [replace(x, element=Element()), x], [Pointwise(0, 1, as_bytes)]
    if residual is not None:
        values.append(replace(x, element=residual))
        steps.append(Pointwise(0, 2, as_bytes))
    most = 255 * max(1, int(signs.flatten(1).abs().sum(1).max()))
    epilogue = Epilogue(
        (torch.rand(o) + 0.5) * 200 / most if scale is None else torch.full((o,), scale),
        torch.randn(o) * 30 + y.element.zero if scale is None else torch.zeros(o),
        None if residual is None else 2,
        None if residual is None else torch.randn(o) / 2,
        activation or Activation(),
    )
    values.append(y)
    steps.append(Conv2d(1, len(values) - 1, Weight("w"), geometry, 1, epilogue))
    if y.element.quantized:
        values.append(replace(y, element=Element()))
        steps.append(Pointwise(len(values) - 2, len(values) - 1, Epilogue(torch.ones(o), torch.zeros(o))))
    return Plan(0, len(values) - 1, 4, values, steps), {"w": SkippingWeight(TernaryWeight.pack(signs))}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Plan, dict, Tensor, int]:
    """One convolution with or without residual, in one of the forms of its input, to bytes of some form or floats."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    inputs = draw(st.sampled_from([1, 3, 5, 16, 31, 64, 80]))
    size = [draw(st.integers(1, 19)) for _ in range(2)]
    kernel, stride = draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (1, 3), (2, 3)])), draw(st.sampled_from([1, 2]))
    padding = (*([draw(st.integers(0, 2))] * 2), *draw(st.sampled_from([(1, 1), (0, 0), (2, 2), (0, 2)])))
    dilation = draw(st.sampled_from([1, 1, 2]))
    out = [(size[i] + sum(padding[2 * i : 2 * i + 2]) - dilation * (kernel[i] - 1) - 1) // stride + 1 for i in (0, 1)]
    if min(out) < 1 or size == [1, 1]:
        kernel, padding, size = (1, 1), (0, 0, 0, 0), [max(s, 2) for s in size]
        out = [(s - 1) // stride + 1 for s in size]
    held = draw(st.booleans()) and min(padding) == max(padding) == 1
    form = {"across": 3, "left": 1} if held else {"across": 1}
    x = Value(inputs, *size, element=Element("uint8", 1.0, draw(st.sampled_from([0, 32, 128])), **form))
    outputs = draw(st.sampled_from([1, 7, 16, 20, 33, 80]))
    residual = None
    if draw(st.booleans()) and stride == 1 and out == size:
        outputs = inputs
        residual = x.element if draw(st.booleans()) else replace(x.element, across=1, left=0)
    if draw(st.booleans()):
        zero = draw(st.sampled_from([0, 64]))
        element = Element("uint8", 1.0, zero, across=1)
        # Pixels side by side need padding around them, which only this size is known to have.
        if held and out == size and draw(st.booleans()):
            element = Element("uint8", 1.0, zero, across=3, left=1)
        activation = Activation("clamp", float(draw(st.sampled_from([0, zero]))), draw(st.sampled_from([255.0, 100.0])))
    else:
        element = Element()
        activation = draw(
            st.sampled_from([Activation(), Activation("clamp", 0.0, 6.0), Activation("clamp", -1.0, 1.0)])
        )
    signs = random_signs(
        (outputs, inputs + draw(st.sampled_from([0, 0, 4])), *kernel), draw(st.sampled_from([0, 0.5, 0.9, 1]))
    )
    signs = torch.cat([signs, signs[:1]]) if draw(st.booleans()) else signs  # more outputs than run
    geometry = (stride, stride, *padding, dilation, dilation)
    plan, weights = plan_of(signs, x, Value(outputs, *out, element=element), geometry, residual, activation)
    return plan, weights, torch.randint(0, 256, (2, inputs, *size)).float(), draw(st.integers(1, 3))


@settings(max_examples=60)
@given(convolutions())
def test_convolutions(case: tuple[Plan, dict, Tensor, int]) -> None:
    both(*case)


@pytest.mark.parametrize("kind", ["plus", "minus", "empty rows", "one", "empty inputs", "uneven"])
@pytest.mark.parametrize("inputs", [1, 64, 130])
def test_weights_that_are_not_random(inputs: int, kind: str) -> None:
    """Sums as large as they come, and rows of all lengths in one group."""
    signs = random_signs((20, inputs, 3, 3), 0.5)
    if kind in ("plus", "minus"):
        signs[:] = 1 if kind == "plus" else -1
    elif kind == "empty rows":
        signs[::3] = 0
    elif kind == "one":
        signs[:] = 0
        signs[7, -1, 2, 2] = -1
    elif kind == "empty inputs":
        signs[:, 1:] = 0
    else:
        signs[torch.rand(signs.shape) < torch.linspace(0, 1, 20)[:, None, None, None]] = 0
    x = Value(inputs, 6, 9, element=Element("uint8", 1.0, 0, across=3, left=1))
    plan, weights = plan_of(signs, x, Value(20, 6, 9), (1, 1, 1, 1, 1, 1, 1, 1), scale=1.0)
    for image in (torch.full((1, inputs, 6, 9), 255.0), torch.randint(0, 256, (1, inputs, 6, 9)).float()):
        both(plan, weights, image)


def test_the_longest_sums_that_a_plan_may_have() -> None:
    signs = torch.ones(2, 65536, 1, 1, dtype=torch.int8)
    signs[1] = -1
    x = Value(65536, 1, 2, element=Element("uint8", 1.0, 0, across=1))
    plan, weights = plan_of(signs, x, Value(2, 1, 2), (1, 1, 0, 0, 0, 0, 1, 1), scale=1.0)
    y = both(plan, weights, torch.full((1, 65536, 1, 2), 255.0))
    assert y.unique().tolist() == [-65536.0 * 255, 65536.0 * 255]


def test_pixels_side_by_side_need_padding() -> None:
    x = Value(16, 4, 4, element=Element("uint8", 1.0, 0, across=3, left=1))
    plan, weights = plan_of(random_signs((16, 16, 1, 1), 0.5), x, Value(16, 4, 4), (1, 1, 0, 0, 0, 0, 1, 1))
    with pytest.raises(ValueError, match="go past the padding"):
        native.Program(native.Store(weights), plan)


@pytest.mark.parametrize(("across", "left"), [(3, 3), (-1, 0), (2, -1), (0, 1)])
def test_forms_that_cannot_be(across: int, left: int) -> None:
    with pytest.raises(ValueError, match="pixels side by side"):
        _C.Program(_C.Store()).value(3, 4, 4, "uint8", 0, across, left)


def test_other_steps_refuse_bytes_of_pixels() -> None:
    x = Value(8, 4, 4, element=Element("uint8", 1.0, 0, across=1))
    plan, _ = plan_of(random_signs((8, 8, 1, 1), 0.5), x, Value(8, 4, 4), (1, 1, 0, 0, 0, 0, 1, 1))
    dense = {"w": QuantizedWeight.of_ternary(TernaryWeight.pack(random_signs((8, 8, 1, 1), 0.5)))}
    with pytest.raises(ValueError, match="it takes no bytes whose channels are neighbours"):
        native.Program(native.Store(dense), plan)


# Networks.


@pytest.fixture(params=[True, False], ids=["skipping", "dense"])
def skipping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether ternary layers skip zeros, whatever is faster on this machine."""
    monkeypatch.setattr(planning, "skips_in_place", lambda zeros: request.param)
    return bool(request.param)


def packed(net: nn.Module, delta: float = 0.02, skip: tuple[str, ...] = ()) -> nn.Module:
    net = dk.ternarize(net, delta=delta, skip=skip)
    net.train()
    with torch.no_grad():
        net(torch.randn(16, *IMAGE))
    return dk.pack(net)


def lowered(net: nn.Module, ranges: dk.quantize.Ranges, key: Key | None = None) -> Lowered:
    return ranges.quantized(key, lower(capture(net, IMAGE, torch.float32, key), tensors_of(net)), 8)


def check(net: nn.Module) -> list[str]:
    """Under every instruction set the compiled net gives what the reference of its plan gives; returns its steps."""
    ranges = dk.quantize.calibrate(net, [torch.randn(4, *IMAGE)])
    x = torch.randn(3, *IMAGE)
    run = dk.compile(net, x, int8=ranges)
    before, steps = _C.isa(), []
    try:
        for key in run.subnets or (None,):
            plan = lowered(net, ranges, key)
            right = reference.run(plan.plan, plan.weights, x)
            for isa in _C.isas():
                _C.force_isa(isa)
                for threads in (1, 2):
                    run.threads = threads
                    y = run(x, subnet=key)
                    torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))
            steps += [step["step"] for step in run.describe(key).steps]
    finally:
        _C.force_isa(before)
    return steps


def test_resnet_binary(skipping: bool) -> None:
    """From the image to the last convolution no layer converts."""
    torch.manual_seed(0)
    steps = check(packed(dk.models.resnet_binary(inflate=1)))
    convolutions = [s for s in steps if "conv2d" in s]
    assert len(convolutions) == 15
    assert all(("look-ups in place" in s) == skipping for s in convolutions)
    assert sum("quantize" in s for s in steps) == 1


def test_a_stem_in_floats_and_crops(skipping: bool) -> None:
    """Shortcut A is a crop of planes; it goes through floats where convolutions read bytes of pixels."""
    torch.manual_seed(0)
    steps = check(packed(dk.models.resnet20(), 0.05, skip=("conv1", "linear")))
    assert any("crop" in s for s in steps)


def test_sub_nets(skipping: bool) -> None:
    torch.manual_seed(0)
    net = dk.slim(dk.models.resnet_binary(inflate=1, depth=8), (0.3, 1.0))
    net = dk.ternarize(net, delta=0.03)
    dk.calibrate_bn(net, [torch.randn(16, *IMAGE)])
    steps = check(dk.pack(net.eval()))
    assert any("conv2d" in s for s in steps)


def test_a_ternary_scale_is_folded(skipping: bool) -> None:
    weight = TernaryWeight(
        TernaryWeight.pack(random_signs((24, 3, 3, 3), 0.7)).packed, (24, 3, 3, 3), torch.rand(24) + 0.5
    )
    net = nn.Sequential(dk.nn.PackedTernaryConv2d(weight, torch.randn(24), padding=1), nn.ReLU()).eval()
    x = torch.randn(2, *IMAGE)
    ranges = dk.quantize.calibrate(net, [x])
    y, right = dk.compile(net, x, int8=ranges)(x), net(x)
    unit = float(x.abs().max()) / 127
    assert (y - right).abs().max() <= 1.01 * unit * 27 * float(weight.scale.max()) / 2
    assert not torch.equal(y, right)


def test_the_memory_of_a_packed_layer() -> None:
    """Its 2 bits a weight, and at 90 % zeros a layout of no more than 2 bits."""
    signs = random_signs((160, 160, 3, 3), 0.9)
    x = Value(160, 16, 16, element=Element("uint8", 1.0, 128, across=3, left=1))
    plan, weights = plan_of(signs, x, Value(160, 16, 16), (1, 1, 1, 1, 1, 1, 1, 1))
    store = native.Store(weights)
    native.Program(store, plan)
    assert signs.numel() / 4 < store.nbytes <= signs.numel() / 2
