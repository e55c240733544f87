"""Integer steps of the engine against the reference, bit by bit and under every instruction set."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern import _C
from dynkern.engine import native, reference
from dynkern.engine.plan import Activation, Conv2d, Crop, Element, Epilogue, Linear, Plan, Pointwise, Pool2d, Value
from dynkern.engine.plan import Weight as Slice
from dynkern.engine.quantized import element_of
from dynkern.engine.quantized_weight import QuantizedWeight

BYTES, HALVES = Element("uint8"), Element("int16")
LIMITS = {"uint8": (0, 255), "int16": (-32767, 32767)}


def ones(channels: int) -> Tensor:
    return torch.ones(channels)


def kept(element: Element) -> Activation:
    """What keeps integers as they are."""
    low, high = LIMITS[element.kind]
    return Activation("clamp", low, high)


def taken(x: Value, element: Element) -> tuple[Value, Epilogue]:
    """Floats that are integers, as such."""
    return replace(x, element=element), Epilogue(ones(x.channels), torch.zeros(x.channels), activation=kept(element))


def integers(shape: tuple[int, ...], element: Element) -> Tensor:
    low, high = LIMITS[element.kind]
    return torch.randint(low, high + 1, shape).float()


def both(plan: Plan, weights: dict, x: Tensor, threads: int = 1) -> Tensor:
    """The native result, which is the reference's to the bit under every instruction set."""
    right = reference.run(plan, weights, x)
    before = _C.isa()
    try:
        for isa in _C.isas():
            _C.force_isa(isa)
            y = native.Program(native.Store(weights), plan).run(x, threads)
            assert torch.equal(y, right), isa
    finally:
        _C.force_isa(before)
    return right


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Plan, dict, Tensor, int]:
    """One convolution of a slice of a weight, with or without residual, to floats or integers."""
    kind = draw(st.sampled_from(["uint8", "int16"]))
    zero = draw(st.sampled_from([0, 32, 128])) if kind == "uint8" else 0
    element = Element(kind, 1.0, zero)
    inputs, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 11))
    size, kernel = ([draw(st.integers(1, most)) for _ in range(2)] for most in (20, 3))
    stride, padding = [draw(st.integers(1, 2)) for _ in range(2)], [draw(st.integers(0, 2)) for _ in range(4)]
    extra = draw(st.integers(0, 5))
    out = [
        (size[i] + padding[2 * i] + padding[2 * i + 1] - kernel[i]) // stride[i] + 1
        if size[i] + padding[2 * i] + padding[2 * i + 1] >= kernel[i]
        else 0
        for i in (0, 1)
    ]
    if min(out) < 1:
        kernel, out = [1, 1], [(size[i] + padding[2 * i] + padding[2 * i + 1] - 1) // stride[i] + 1 for i in (0, 1)]
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype, bits = (torch.int8, 8) if kind == "uint8" else (torch.int16, 16)
    least, most = (-128, 127) if bits == 8 else (-32767, 32767)
    full = torch.randint(least, most + 1, (outputs + extra, inputs + extra, *kernel), dtype=dtype)
    weights = {"w": QuantizedWeight(full, torch.ones(len(full)))}
    x = Value(inputs, *size)
    quantized, quantize = taken(x, element)
    result = Value(outputs, *out)
    values, steps = [x, quantized], [Pointwise(0, 1, quantize)]
    residual = draw(st.booleans()) and stride == [1, 1] and out == size
    if residual:
        # A residual of as many channels as there are results: a crop of the input, padded with its zero.
        values.append(replace(result, element=element))
        steps.append(Crop(1, 2, (0, 0, 0), (1, 1), (min(inputs, outputs), *size)))
    to = draw(st.sampled_from(["float32", kind]))
    activation = Activation("clamp", draw(st.sampled_from([0.0, -3.0])), draw(st.sampled_from([6.0, float("inf")])))
    made = Element() if to == "float32" else Element(to, 1.0, draw(st.sampled_from([0, 64])) if to == "uint8" else 0)
    if made.quantized:
        low, high = LIMITS[to]
        activation = Activation("clamp", max(low, made.zero + activation.low), min(high, made.zero + activation.high))
    values.append(replace(result, element=made))
    size_of_sums = float(full.double().abs().sum((1, 2, 3)).max() * 128 * (1 if bits == 8 else 256) + 1)
    span = 100.0 if to != "int16" else 30000.0
    epilogue = Epilogue(
        (torch.rand(outputs) + 0.5) * span / size_of_sums,
        torch.randn(outputs) * span / 8,
        2 if residual else None,
        torch.randn(outputs) * span / LIMITS[kind][1] if residual else None,
        activation,
    )
    geometry = (*stride, *padding, 1, 1)
    steps.append(Conv2d(1, len(values) - 1, Slice("w"), geometry, 1, epilogue))
    if made.quantized:
        values.append(result)
        back = torch.full((outputs,), 0.37)
        steps.append(Pointwise(len(values) - 2, len(values) - 1, Epilogue(back, -back * made.zero)))
    plan = Plan(0, len(values) - 1, 4, values, steps)
    return plan, weights, integers((2, inputs, *size), element), draw(st.integers(1, 3))


@settings(max_examples=120)
@given(convolutions())
def test_convolutions(case: tuple[Plan, dict, Tensor, int]) -> None:
    both(*case)


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("zero", [0, 128])
def test_sums_of_bytes_never_saturate(weight: int, zero: int) -> None:
    """The largest products, of which two do not fit 16 bits."""
    element = Element("uint8", 1.0, zero)
    x, y = Value(70, 5, 7), Value(3, 5, 7)
    quantized, quantize = taken(x, element)
    weights = {"w": QuantizedWeight(torch.full((3, 70, 3, 3), weight, dtype=torch.int8), ones(3))}
    conv = Conv2d(1, 2, Slice("w"), (1, 1, 1, 1, 1, 1, 1, 1), 1, Epilogue(ones(3), torch.zeros(3)))
    plan = Plan(0, 2, 4, [x, quantized, y], [Pointwise(0, 1, quantize), conv])
    y_ = both(plan, weights, torch.full((1, 70, 5, 7), 255.0))
    assert float(y_[0, 0, 2, 3]) == 70 * 9 * weight * (255 - zero)


@pytest.mark.parametrize("weight", [-32767, 32767, 8000])
def test_sums_of_half_words_never_overflow(weight: int) -> None:
    """The largest sums, the signs of all products alike."""
    x, y = Value(9, 6, 20), Value(5, 6, 20)
    quantized, quantize = taken(x, HALVES)
    full = torch.full((5, 9, 3, 3), weight, dtype=torch.int16)
    weights = {"w": QuantizedWeight(full, ones(5))}
    conv = Conv2d(1, 2, Slice("w"), (1, 1, 1, 1, 1, 1, 1, 1), 1, Epilogue(ones(5), torch.zeros(5)))
    plan = Plan(0, 2, 4, [x, quantized, y], [Pointwise(0, 1, quantize), conv])
    for sign in (-1, 1):
        y_ = both(plan, weights, torch.full((1, 9, 6, 20), sign * 32767.0))
        exact = sign * 81 * weight * 32767
        # At most as many roundings as there are words.
        assert abs(float(y_[0, 0, 2, 3]) - exact) <= 45 * 2**-24 * abs(exact)


@given(st.integers(0, 10_000), st.sampled_from([300, 9000, 32767]))
def test_words_in_a_row_are_exact(seed: int, largest: int) -> None:
    """No run of that many words can overflow; one more word, somewhere, could."""
    torch.manual_seed(seed)
    values = torch.randint(-largest, largest + 1, (3, 5, 2, 3), dtype=torch.int16)
    weight = QuantizedWeight(values, ones(3))
    sizes, length = weight.pairs().abs().sum(-1), weight.exact_words()
    assert sizes.shape == (3, 18)
    assert 1 <= length <= 18
    runs = [sizes[:, i : i + length].sum(1).max() for i in range(18 - length + 1)]
    assert max(runs) * 32767 < 2**31
    if length < 18:
        longer = [sizes[:, i : i + length + 1].sum(1).max() for i in range(18 - length)]
        assert max(longer) * 32767 >= 2**31


@pytest.mark.parametrize("element", [Element("uint8", 1.0, 96), HALVES], ids=["uint8", "int16"])
def test_rounding(element: Element) -> None:
    """To the nearest, ties to even; beyond the ends to the ends; NaN to the lower one."""
    low, high = LIMITS[element.kind]
    numbers = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, torch.inf, -torch.inf, torch.nan, high, high - 0.5]
    x = torch.tensor([*numbers, low + 0.5, 100.4999, 100.5, 101.5]).reshape(1, 1, 2, -1).repeat(1, 3, 1, 1)
    value = Value(3, *x.shape[2:])
    quantized, quantize = taken(value, element)
    plan = Plan(0, 2, 4, [value, quantized, value], [Pointwise(0, 1, quantize), Pointwise(1, 2, _plain(3))])
    y = both(plan, {}, x)
    exact = x.nan_to_num(nan=low, posinf=high, neginf=low).clamp(low, high).round()
    assert torch.equal(y, exact)


def _plain(channels: int) -> Epilogue:
    return Epilogue(ones(channels), torch.zeros(channels))


@pytest.mark.parametrize("element", [Element("uint8", 1.0, 64), HALVES], ids=["uint8", "int16"])
@pytest.mark.parametrize("offset", range(5))
@pytest.mark.parametrize("first", [0, 1, 4])
def test_crops(element: Element, offset: int, first: int) -> None:
    x, y = Value(9, 7, 18), Value(12, 4, 9)
    values = [x, replace(x, element=element), replace(y, element=element), y]
    crop = Crop(1, 2, (first, 1, 0), (2, 2), (5, 3, 9), (offset, 1, 0))
    plan = Plan(0, 3, 4, values, [Pointwise(0, 1, taken(x, element)[1]), crop, Pointwise(2, 3, _plain(12))])
    data = integers((2, 9, 7, 18), element)
    y_ = both(plan, {}, data, threads=2)
    expected = torch.full((2, 12, 4, 9), float(element.zero))
    expected[:, offset : offset + 5, 1:] = data[:, first : first + 5, 1::2, ::2]
    assert torch.equal(y_, expected)


@pytest.mark.parametrize("element", [Element("uint8", 1.0, 64), HALVES], ids=["uint8", "int16"])
@pytest.mark.parametrize("size", [(3, 5), (9, 16), (14, 31), (6, 50)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((2, 2), (2, 2), (0,) * 4),
        ((3, 2), (1, 1), (1, 0, 0, 1)),
        ((1, 3), (1, 3), (0,) * 4),
    ],
)
def test_maxima(
    element: Element, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple
) -> None:
    out = [(size[i] + sum(padding[2 * i : 2 * i + 2]) - kernel[i]) // stride[i] + 1 for i in (0, 1)]
    x, y = Value(6, *size), Value(6, *out)
    values = [x, replace(x, element=element), replace(y, element=element), y]
    pool = Pool2d(1, 2, "max", kernel, stride, padding)
    plan = Plan(0, 3, 4, values, [Pointwise(0, 1, taken(x, element)[1]), pool, Pointwise(2, 3, _plain(6))])
    both(plan, {}, integers((2, 6, *size), element), threads=2)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from([8, 16]))
def test_elements_hold_their_bounds(a: float, b: float, bits: int) -> None:
    low, high = min(a, b), max(a, b)
    element = element_of((low, high), bits)
    least, most = LIMITS[element.kind]
    slack = 1e-9 * element.scale
    assert element.scale * (least - element.zero) <= low + slack
    assert element.scale * (most - element.zero) >= high - slack
    span = max(high, 0) - min(low, 0)
    if bits == 8 and span > 1e-27:
        # Zero points in steps of 32 waste at most an eighth and a bit of the range.
        assert element.scale <= span / 255 * 1.26
    assert element.zero == 0 or low < 0


@given(st.integers(0, 1000), st.sampled_from([8, 16]))
def test_weights(seed: int, bits: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([1, 1e-3, 1e3, 0, 1])[:, None, None, None]
    found = QuantizedWeight.from_float(weight, bits)
    assert found.bits == bits
    values = found.values.double() * found.scale[:, None, None, None]
    assert bool(((values - weight).abs() <= found.scale[:, None, None, None] * 0.5000001).all())
    assert bool((found.values[3] == 0).all())
    assert int(found.values.abs().max()) == (127 if bits == 8 else 32767)


class TestRefused:
    """Plans that no pass makes: an error, not a wrong answer."""

    def program(self, values: list[Value], steps: list, weights: dict | None = None) -> None:
        # Only the steps matter: the output is the input.
        native.Program(native.Store(weights or {}), Plan(0, 0, 4, values, steps))

    def conv(self, x: Element, y: Element, weight: object, activation: Activation | None = None) -> None:
        values = [Value(4, 3, 3), Value(4, 3, 3, element=x), Value(4, 3, 3, element=y), Value(4, 3, 3)]
        steps = [
            Pointwise(0, 1, taken(values[0], x)[1] if x.quantized else Epilogue()),
            Conv2d(1, 2, Slice("w"), (1, 1, 1, 1, 1, 1, 1, 1), 1, Epilogue(activation=activation or kept(BYTES))),
            Pointwise(2, 3, _plain(4)),
        ]
        self.program(values, steps, {"w": weight})

    def test_weights_of_another_kind(self) -> None:
        narrow = QuantizedWeight(torch.ones(4, 4, 3, 3, dtype=torch.int8), ones(4))
        wide = QuantizedWeight(torch.ones(4, 4, 3, 3, dtype=torch.int16), ones(4))
        self.conv(BYTES, BYTES, narrow)
        for x, y, weight in ((BYTES, BYTES, wide), (HALVES, HALVES, narrow), (Element(), BYTES, narrow)):
            with pytest.raises(ValueError, match="quantised alike"):
                self.conv(x, y, weight)
        for x, y in ((BYTES, Element()), (Element(), BYTES), (BYTES, BYTES)):
            with pytest.raises(ValueError, match="takes no quantised values"):
                self.conv(x, y, torch.ones(4, 4, 3, 3))

    @pytest.mark.parametrize("bounds", [(0, 256), (-1, 255), (65, 255), (0, 63), (0, float("nan"))])
    def test_bounds(self, bounds: tuple[float, float]) -> None:
        narrow = QuantizedWeight(torch.ones(4, 4, 3, 3, dtype=torch.int8), ones(4))
        with pytest.raises(ValueError, match="clamped"):
            self.conv(BYTES, Element("uint8", 1.0, 64), narrow, Activation("clamp", *bounds))
        with pytest.raises(ValueError, match="clamped"):
            self.conv(BYTES, Element("uint8", 1.0, 64), narrow, Activation())

    def test_values(self) -> None:
        for element, message in (
            (Element("uint8", 1.0, 256), "zero point"),
            (Element("uint8", 1.0, -1), "zero point"),
            (Element("int16", 1.0, 1), "zero point"),
            (Element("int4"), "unknown kind"),
        ):
            with pytest.raises(ValueError, match=message):
                self.program([Value(4, element=element)], [])
        with pytest.raises(ValueError, match="inputs and outputs are floats"):
            self.program([Value(4, element=BYTES)], [])

    def test_steps_of_floats(self) -> None:
        x = Value(4, 4, 4)
        bytes_, _ = taken(x, BYTES)
        quantize = Pointwise(0, 1, taken(x, BYTES)[1])
        cases = [
            (Pool2d(1, 2, "average", (2, 2), (2, 2)), Value(4, 2, 2, element=BYTES), "only maxima"),
            (Pool2d(1, 2, "max", (2, 2), (2, 2)), Value(4, 2, 2), "only maxima"),
            (Crop(1, 2, (0, 0, 0), (1, 1), (4, 4, 4)), replace(bytes_, element=Element("uint8", 1, 32)), "alike"),
            (Crop(1, 2, (0, 0, 0), (1, 1), (4, 4, 4)), x, "alike"),
            (Pointwise(1, 2, Epilogue()), x, "scale and shift"),
            (Pointwise(1, 2, replace(_plain(4), residual=0)), x, "scale and shift"),
            (Pointwise(1, 2, replace(_plain(4), activation=Activation("silu"))), x, "without activation"),
            (Pointwise(1, 2, replace(_plain(4), activation=kept(BYTES))), bytes_, "only its float"),
        ]
        for step, value, message in cases:
            with pytest.raises(ValueError, match=message):
                self.program([x, bytes_, value, value], [quantize, step])

    def test_weights(self) -> None:
        store = native.Store({}).native
        for weight, message in (
            (torch.ones(4, 4, 3, 3), "int8 or int16"),
            (torch.ones(4, 4, dtype=torch.int8), "4 dimensions"),
            (torch.ones(4, 4, 3, 3, dtype=torch.int8).transpose(0, 1)[:, :3], "contiguous"),
            (torch.full((1, 1, 1, 1), -32768, dtype=torch.int16), "-32767"),
            (torch.ones(1, 70_000, 1, 1, dtype=torch.int8), "too many inputs"),
        ):
            with pytest.raises(ValueError, match=message):
                store.add_quantized(weight)
        linear = Linear(0, 1, Slice("w"))
        with pytest.raises(ValueError, match="features"):
            self.program([Value(4), Value(4)], [linear], {"w": QuantizedWeight(torch.ones(4, 4, 1, 1).char(), ones(4))})


def test_every_tile() -> None:
    """Widths around whole vectors and tiles, in place and in planes, with bytes and half-words."""
    for (width, height), element in itertools.product(
        [(1, 1), (15, 1), (16, 1), (33, 3), (97, 1), (100, 2)], [BYTES, HALVES]
    ):
        x, y = Value(5, height, width), Value(6, height, width)
        dtype = torch.int8 if element is BYTES else torch.int16
        weights = {"w": QuantizedWeight(torch.randint(-99, 99, (8, 6, 3, 3), dtype=dtype), ones(8))}
        conv = Conv2d(1, 2, Slice("w"), (1, 1, 1, 1, 1, 1, 1, 1), 1, _plain(6))
        plan = Plan(0, 2, 4, [x, taken(x, element)[0], y], [Pointwise(0, 1, taken(x, element)[1]), conv])
        both(plan, weights, integers((1, 5, height, width), element))
