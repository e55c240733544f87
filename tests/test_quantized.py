"""Networks in integers: calibration, compiled plans against the reference and against floats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_models import WIDTHS, DenseNet, MobileNet, exact, settled, slim_net
from slim_models import NON_UNIFORM, SAMPLES
from torch import Tensor, nn

import dynkern as dk
from dynkern import _C
from dynkern.data import load_cifar10, normalize
from dynkern.engine import Compiled, reference
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.lower import Lowered, lower
from dynkern.engine.quantized_weight import QuantizedWeight
from dynkern.nn.selection import Key
from dynkern.quantize import Ranges

IMAGE = (3, 32, 32)
BITS = (8, 16)


class Pooled(nn.Module):
    """A stem with a maximum, as of ResNet-18, whose activations are signed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 9, 7, 2, 3), nn.Hardtanh(), nn.MaxPool2d(3, 2, 1))
        self.body = nn.Sequential(nn.Conv2d(9, 14, 3, padding=1), nn.BatchNorm2d(14))
        self.last = nn.Conv2d(14, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x)))


def lowered(net: nn.Module, ranges: Ranges, bits: int, shape: tuple[int, ...], key: Key | None = None) -> Lowered:
    plain = lower(capture(net, shape, torch.float32, key), tensors_of(net))
    return ranges.quantized(key, plain, bits)


def compiled(net: nn.Module, ranges: Ranges, bits: int, x: Tensor, threads: int | None = None) -> Compiled:
    return dk.compile(net, x, threads, **{f"int{bits}": ranges})


def check(net: nn.Module, shape: tuple[int, ...], *, to_the_bit: bool) -> None:
    """Under every instruction set the compiled net gives what the reference of its plan gives, for every sub-net.

    ``to_the_bit``: nothing follows the integers that rounds differently.
    """
    ranges = dk.quantize.calibrate(net, [torch.randn(4, *shape)])
    x = torch.randn(2, *shape)
    before = _C.isa()
    try:
        for bits in BITS:
            run = compiled(net, ranges, bits, x)
            for key in run.subnets or (None,):
                plan = lowered(net, ranges, bits, shape, key)
                right = reference.run(plan.plan, plan.weights, x)
                for isa in _C.isas():
                    _C.force_isa(isa)
                    for threads in (1, 3):
                        run.threads = threads
                        y = run(x, subnet=key)
                        if to_the_bit:
                            assert torch.equal(y, right)
                        else:
                            torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))
    finally:
        _C.force_isa(before)


class TestNetworks:
    def test_slim_resnet20(self) -> None:
        """Shortcut A crops from and to places within words at these widths."""
        net = dk.slim(settled(dk.models.resnet20(), IMAGE), (0.25, 0.75))
        dk.calibrate_bn(net, [torch.randn(16, *IMAGE)])
        check(net.eval(), IMAGE, to_the_bit=False)

    def test_pooled(self) -> None:
        check(settled(Pooled(), (3, 45, 61)), (3, 45, 61), to_the_bit=True)

    def test_dense(self) -> None:
        check(settled(DenseNet(), (3, 36, 32)), (3, 36, 32), to_the_bit=False)

    @pytest.mark.parametrize("name", ["residual", "dense", "se", "tied"])
    def test_non_uniform(self, name: str) -> None:
        build, (_, *shape) = SAMPLES[name]
        net = dk.slim(settled(build(), tuple(shape)), (0.5, NON_UNIFORM[name], 1.0))
        dk.calibrate_bn(net, [torch.randn(16, *shape)])
        check(net.eval(), tuple(shape), to_the_bit=False)

    def test_transcendental_activations_differ_by_a_unit_at_most(self) -> None:
        """Their floats are not the same bits everywhere, so that an integer may round to its neighbour."""
        shape = (3, 40, 28)
        net = settled(MobileNet(), shape)
        ranges = dk.quantize.calibrate(net, [torch.randn(4, *shape)])
        x = torch.randn(2, *shape)
        for bits, bound in ((8, 0.02), (16, 1e-4)):
            plan = lowered(net, ranges, bits, shape)
            right = reference.run(plan.plan, plan.weights, x)
            y = compiled(net, ranges, bits, x)(x)
            torch.testing.assert_close(y, right, rtol=0, atol=bound * float(right.abs().max()))

    def test_packed_ternary_layers_become_integers_of_8_bits(self) -> None:
        net = dk.pack(dk.ternarize(settled(dk.models.resnet_binary(inflate=1), IMAGE), delta=0.02))
        ranges = dk.quantize.calibrate(net, [torch.randn(4, *IMAGE)])
        for bits, kind in ((8, "int8"), (16, "ternary")):
            steps = [step["step"] for step in compiled(net, ranges, bits, torch.randn(1, *IMAGE)).describe().steps]
            assert all(step.startswith(kind) for step in steps if "conv2d" in step)


@pytest.mark.parametrize("bits", BITS)
def test_one_layer_is_within_its_rounding(bits: int) -> None:
    """Half a unit of each weight, of each activation and of the result, through the sum."""
    net = settled(nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)), (6, 12, 12))
    x = torch.randn(3, 6, 12, 12)
    ranges = dk.quantize.calibrate(net, [x])
    y, right = compiled(net, ranges, bits, x)(x), exact(net, x)
    plan = lowered(net, ranges, bits, (6, 12, 12)).plan
    unit = next(v.element.scale for v in plan.values if v.element.quantized)
    weight = net[0].weight.detach().double()
    quantized = QuantizedWeight.from_float(weight, bits)
    steps = quantized.scale[:, None, None, None].expand_as(weight)
    of_x = nn.functional.conv2d(torch.ones_like(x).double(), weight.abs() + steps / 2, padding=1) * unit / 2
    of_weight = nn.functional.conv2d(x.double().abs(), steps / 2, padding=1)
    error = (y.double() - right).abs()
    assert bool((error <= (of_x + of_weight) * 1.001 + 1e-5).all())
    assert float(error.max()) > (1e-6 if bits == 16 else 1e-3)  # it did round


def test_ranges_are_those_of_each_subnet() -> None:
    net = slim_net(SAMPLES["residual"][0](), (3, 9, 8))
    x = torch.randn(7, 3, 9, 8)
    ranges = dk.quantize.calibrate(net, [x[:4], (x[4:], torch.zeros(3))])
    assert tuple(ranges.bounds) == WIDTHS
    for key in WIDTHS:
        with torch.no_grad(), dk.using(net, key):
            y = net(x)
        low, high = ranges.bounds[key][-1]
        assert low == pytest.approx(min(0.0, float(y.min())), rel=1e-4)
        assert high == pytest.approx(max(0.0, float(y.max())), rel=1e-4)
        assert ranges.bounds[key][0] == (float(x.min()), float(x.max()))
    assert ranges.bounds[0.25] != ranges.bounds[1.0]
    few = dk.quantize.calibrate(net, [x[:4], x[4:]], batches=1)
    assert few.bounds[1.0][0] == (float(x[:4].min()), float(x[:4].max()))


def block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [*block(3, 16), *block(16, 32), *block(32, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)]
    return slim_net(nn.Sequential(*layers), (3, 16, 16))


@pytest.fixture(scope="module")
def ranges(net: nn.Module) -> Ranges:
    torch.manual_seed(1)
    return dk.quantize.calibrate(net, [torch.randn(8, 3, 16, 16)])


class TestLife:
    def test_the_network_remembers_its_ranges(self, net: nn.Module, ranges: Ranges) -> None:
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(dk.compile(net, x, int8=True)(x), dk.compile(net, x, int8=ranges)(x))
        assert torch.equal(dk.compile(net, x, int16=True)(x), dk.compile(net, x, int16=ranges)(x))
        assert not torch.equal(dk.compile(net, x, int8=True)(x), dk.compile(net, x)(x))

    @pytest.mark.parametrize("bits", BITS)
    def test_integers_are_described(self, net: nn.Module, ranges: Ranges, bits: int) -> None:
        steps = [s["step"] for s in compiled(net, ranges, bits, torch.randn(2, 3, 16, 16)).describe(0.25).steps]
        assert [step.split()[0] for step in steps[:4]] == ["quantize", *[f"int{bits}"] * 3]
        assert steps[3].endswith("to float")
        assert steps[4:] == ["adaptive_avg_pool2d", "linear"]

    def test_memory(self, net: nn.Module, ranges: Ranges) -> None:
        """One store of integers for all sub-nets, and activations of a quarter or half."""
        x = torch.randn(2, 3, 16, 16)
        full, narrow, wide = dk.compile(net, x), compiled(net, ranges, 8, x), compiled(net, ranges, 16, x)
        count = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))
        classifier, stem = 4 * 5 * 24, 16 * 9  # the stem's three channels take four places
        assert narrow.describe().weight_bytes == count + stem + classifier
        assert wide.describe().weight_bytes == 2 * (count + stem) + classifier
        # Floats are there at both ends: the image and what is pooled.
        assert narrow.describe().arena_bytes < 0.75 * full.describe().arena_bytes

    def test_other_sizes_batches_and_weights(self, net: nn.Module, ranges: Ranges) -> None:
        x, larger = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 24, 20)
        run = compiled(net, ranges, 8, x)
        plan = lowered(net, ranges, 8, (3, 24, 20), 0.5)
        right = reference.run(plan.plan, plan.weights, larger)
        torch.testing.assert_close(run(larger, subnet=0.5), right, rtol=1e-5, atol=1e-5)
        y, bias = run(x), net[-1].bias
        with torch.no_grad():
            bias += 1
        run.refresh()
        torch.testing.assert_close(run(x), y + 1, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            bias -= 1


class TestErrors:
    def test_without_ranges(self) -> None:
        net, x = nn.Sequential(nn.Conv2d(3, 4, 1)), torch.randn(1, 3, 4, 4)
        for argument in ("int8", "int16"):
            with pytest.raises(ValueError, match=f"{argument}: .*calibrate"):
                dk.compile(net, x, **{argument: True})
            with pytest.raises(TypeError, match=f"{argument}: expected a bool or the ranges"):
                dk.compile(net, x, **{argument: 1})

    def test_both_kinds(self) -> None:
        net, x = nn.Sequential(nn.Conv2d(3, 4, 1)), torch.randn(1, 3, 4, 4)
        ranges = dk.quantize.calibrate(net, [x])
        with pytest.raises(ValueError, match="at most one"):
            dk.compile(net, x, int8=ranges, int16=True)

    def test_ranges_of_another_network(self, net: nn.Module) -> None:
        x = torch.randn(1, 3, 16, 16)
        of_plain = dk.quantize.calibrate(nn.Sequential(*block(3, 4)), [x])
        with pytest.raises(ValueError, match=r"sub-net 0\.25"):
            dk.compile(net, x, int8=of_plain)
        with pytest.raises(ValueError, match="other layers"):
            dk.compile(nn.Sequential(*block(3, 8)), x, int8=of_plain)

    @pytest.mark.parametrize(
        ("loader", "error", "message"),
        [
            ([], ValueError, "at least one batch"),
            ([torch.zeros(0, 3, 8, 8)], ValueError, "not empty"),
            ([torch.zeros(3, 8, 8)], ValueError, r"\(N, C, H, W\)"),
            ([torch.zeros(1, 3, 8, 8).double()], TypeError, "float32"),
            ([torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)], ValueError, "one size"),
            ([torch.full((1, 3, 8, 8), torch.nan)], ValueError, "finite"),
            ([torch.full((1, 3, 8, 8), torch.inf)], ValueError, "finite"),
            (["image"], TypeError, "expected tensors"),
        ],
    )
    def test_batches(self, loader: list, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            dk.quantize.calibrate(nn.Sequential(nn.Conv2d(3, 4, 1)), loader)

    def test_arguments(self) -> None:
        with pytest.raises(TypeError, match="net: expected a module"):
            dk.quantize.calibrate(torch.relu, [torch.zeros(1, 3, 8, 8)])  # type: ignore[arg-type]
        for batches in (0, True, 1.5):
            with pytest.raises(ValueError, match="batches"):
                dk.quantize.calibrate(nn.Conv2d(3, 4, 1), [torch.zeros(1, 3, 8, 8)], batches)  # type: ignore[arg-type]


@pytest.mark.shared_data
def test_the_trained_network_on_real_images(shared_data: Path) -> None:
    (file,) = (shared_data / "data" / "resnet_cifar10").glob("resnet20-*.th")
    net = dk.load_checkpoint(dk.models.resnet20(), file).eval()
    folder = shared_data / "data" / "cifar10"
    seen, _ = load_cifar10(folder, "train", limit=256)
    dk.quantize.calibrate(net, normalize(seen).split(64))
    images, labels = load_cifar10(folder, "test", limit=1000)
    x = normalize(images)
    float32, narrow, wide = dk.compile(net, x)(x), dk.compile(net, x, int8=True)(x), dk.compile(net, x, int16=True)(x)
    right = [float((y.argmax(1) == labels).float().mean()) for y in (float32, narrow, wide)]
    # Of a thousand images: on the ten thousand the differences are 0.1 and 0.0 points (bench/results).
    assert abs(right[1] - right[0]) <= 0.01
    assert abs(right[2] - right[0]) <= 0.002
    assert float((narrow.argmax(1) == float32.argmax(1)).float().mean()) >= 0.97
