"""From networks to plans: the plans compute the same, and are as short as promised."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from engine_models import OPERATORS, SHAPE, DenseNet, Function, MobileNet, assert_close, image, settled
from hypothesis import given
from hypothesis import strategies as st
from slim_models import NON_UNIFORM, SAMPLES, randomized, sample
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dynkern as dk
from dynkern.engine import plan as p
from dynkern.engine import reference
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.fuse import fuse, reads
from dynkern.engine.lower import Lowered, lower
from dynkern.nn.selection import Key

Shape = tuple[int, ...]


def lowered(net: nn.Module, shape: Shape, key: Key | None = None, dtype: torch.dtype = torch.float64) -> Lowered:
    """The plan of ``net``, with unrounded epilogues where ``net`` is float64."""
    return lower(capture(net, shape, dtype, key), tensors_of(net), dtype)


def check(net: nn.Module, shape: Shape, key: Key | None = None, batch: int = 3) -> Lowered:
    """The plan of ``net``, whose results are those of ``net``, in float64."""
    net = net.double().eval()
    result = lowered(net, shape, key)
    x = torch.randn(batch, *shape, dtype=torch.float64)
    with torch.no_grad():
        if key is None:
            expected = net(x)
        else:
            with dk.using(net, key):
                expected = net(x)
    y = reference.run(result.plan, result.weights, x)
    assert y.shape == expected.shape
    assert_close(y, expected, net)
    return result


def kinds(result: Lowered) -> Counter[str]:
    return Counter(type(step).__name__ for step in result.plan.steps)


class TestNetworks:
    @pytest.mark.parametrize(
        ("shortcut", "steps"),
        [
            ("A", {"Conv2d": 19, "Crop": 2, "AdaptiveAverage": 1, "Linear": 1}),
            ("B", {"Conv2d": 21, "AdaptiveAverage": 1, "Linear": 1}),
            ("proj_all", {"Conv2d": 28, "AdaptiveAverage": 1, "Linear": 1}),
        ],
    )
    def test_resnet20(self, shortcut: str, steps: dict[str, int]) -> None:
        net = settled(dk.models.resnet20(shortcut=shortcut), (3, 32, 32))
        assert kinds(check(net, (3, 32, 32))) == steps

    @pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 20), ("resnet50", 53)])
    def test_imagenet(self, name: str, convolutions: int) -> None:
        net = settled(dk.models.MODELS[name].build(num_classes=9, width=0.25), (3, 48, 64))
        steps = {"Conv2d": convolutions, "Pool2d": 1, "AdaptiveAverage": 1, "Linear": 1}
        assert kinds(check(net, (3, 48, 64))) == steps

    def test_mobilenetv2(self) -> None:
        net = settled(dk.models.mobilenetv2(num_classes=9, width=0.25), (3, 48, 64))
        assert kinds(check(net, (3, 48, 64))) == {"Conv2d": 52, "AdaptiveAverage": 1, "Linear": 1}

    def test_resnet_binary(self) -> None:
        net = settled(dk.models.resnet_binary(inflate=1), (3, 32, 32))
        # The last batch norm before the classifier has no step before it that could do it.
        steps = {"Conv2d": 15, "AdaptiveAverage": 1, "Pointwise": 1, "Linear": 1, "Softmax": 1}
        assert kinds(check(net, (3, 32, 32))) == steps

    def test_mobile(self) -> None:
        steps = kinds(check(settled(MobileNet(), (3, 20, 24)), (3, 20, 24)))
        assert steps == {"Conv2d": 17, "AdaptiveAverage": 4, "Multiply": 3, "Linear": 1}

    def test_dense(self) -> None:
        result = check(settled(DenseNet(), (3, 32, 28)), (3, 32, 28))
        # What has no layer before it stays: batch norms after concatenations, the activation after the average.
        assert kinds(result) == {
            **{"Conv2d": 8, "Pool2d": 2, "Concat": 3, "Pointwise": 5},
            **{"AdaptiveAverage": 1, "Linear": 1},
        }

    def test_slim_at_every_width(self) -> None:
        widths = (0.25, 0.5, 0.75, 1.0)
        net = dk.slim(settled(dk.models.resnet20(), (3, 32, 32)), widths)
        dk.calibrate_bn(net, [torch.randn(16, 3, 32, 32)])
        results = {width: check(net, (3, 32, 32), width) for width in widths}
        for width, result in results.items():
            assert kinds(result) == {"Conv2d": 19, "Crop": 2, "AdaptiveAverage": 1, "Linear": 1}
            assert image(result.plan.values[1]) == (16 * width, 32, 32)
        # One store: the same names, and behind them the very parameters, whole.
        assert len({frozenset(result.weights) for result in results.values()}) == 1
        for result in results.values():
            for name, weight in result.weights.items():
                assert isinstance(weight, Tensor)
                assert weight.data_ptr() == net.get_parameter(name).data_ptr()
                assert weight.shape == net.get_parameter(name).shape

    @pytest.mark.parametrize("name", ["residual", "dense", "se", "mlp", "tied"])
    def test_every_way_channels_flow(self, name: str) -> None:
        model, x = sample(name)
        check(copy.deepcopy(model), tuple(x.shape[1:]))
        net = dk.slim(model, (0.5, NON_UNIFORM[name], 1.0))
        dk.calibrate_bn(net, [x])
        for key in dk.subnets.keys(net):
            check(net, tuple(x.shape[1:]), key)

    def test_index_sets(self) -> None:
        net = dk.slim(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)), (dk.SubNet("s", {"0": [4, 1]}),)
        )
        first, second = check(net, (3, 6, 6), "s").plan.steps
        assert isinstance(first, p.Conv2d)
        assert isinstance(second, p.Conv2d)
        assert first.weight == p.Weight("0.weight", None, (4, 1))
        assert second.weight == p.Weight("2.weight", (4, 1), None)

    @pytest.mark.parametrize("kept", [[5, 0, 3], [4]])
    @pytest.mark.parametrize("multiplier", [1, 2])
    def test_depthwise_index_sets(self, kept: list[int], multiplier: int) -> None:
        net = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6 * multiplier, 3, groups=6), nn.ReLU())
        net.append(nn.Conv2d(6 * multiplier, 2, 1))
        if multiplier == 1:
            check(dk.slim(net, (dk.SubNet("s", {"0": kept}), 1.0)), (2, 5, 5), "s")
            return
        index = torch.tensor(kept)

        def forward(x: Tensor) -> Tensor:
            x = dk.ops.sliced_conv2d(x, net[0].weight, net[0].bias, out_index=index)
            return dk.ops.sliced_conv2d(x, net[1].weight, net[1].bias, groups=6, in_index=index)

        check(Holder(net.double(), forward), (2, 5, 5))

    def test_packed(self) -> None:
        net = dk.ternarize(settled(dk.models.resnet_binary(inflate=1), (3, 32, 32)), delta=0.02)
        net = dk.pack(settled(net, (3, 32, 32)))
        result = check(net, (3, 32, 32))
        assert all(isinstance(weight, dk.TernaryWeight) for weight in result.weights.values())
        assert len(result.weights) == 16

    def test_packed_with_scale_and_slim(self) -> None:
        net = dk.slim(settled(dk.models.resnet20(), (3, 16, 16)), (0.5, 1.0))
        dk.ternarize(net, 0.05)
        net = dk.pack(net)
        for module in net.modules():
            if isinstance(module, dk.nn.PackedTernaryConv2d):
                module.scale = torch.rand(module.out_channels) + 0.5
        dk.calibrate_bn(net, [torch.randn(8, 3, 16, 16)])
        for key in (0.5, 1.0):
            result = check(net, (3, 16, 16), key)
            assert all(isinstance(w, dk.TernaryWeight) and w.scale is None for w in result.weights.values())

    def test_ternary_before_packing(self) -> None:
        net = dk.ternarize(settled(dk.models.resnet20(), (3, 16, 16)), 0.05)
        result = check(settled(net, (3, 16, 16)).double(), (3, 16, 16))
        for weight in result.weights.values():
            assert isinstance(weight, Tensor)
            assert set(weight.unique().tolist()) <= {-1.0, 0.0, 1.0}


class Holder(nn.Module):
    """A function that uses the parameters of a network."""

    def __init__(self, net: nn.Module, function: object) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str) -> None:
    function, steps = OPERATORS[name]
    assert kinds(check(Function(function), SHAPE)) == Counter(steps)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 5, 3, padding="same", dilation=2),
        nn.Conv2d(6, 5, (2, 4), padding="same"),
        nn.Conv2d(6, 5, (3, 1), (2, 3), (1, 0), bias=False),
        nn.Conv2d(6, 9, 3, groups=3),
        nn.Conv2d(6, 12, 5, 2, 2, groups=6),
        nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last),
        randomized(nn.BatchNorm2d(6)),
        nn.BatchNorm2d(6, affine=False),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 4, 3, 2, 1)),
        nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=False), randomized(nn.BatchNorm1d(4)), nn.Tanh()
        ),
    ],
    ids=str,
)
def test_layer(layer: nn.Module) -> None:
    steps = kinds(check(layer, SHAPE))
    assert set(steps) <= {"Conv2d", "AdaptiveAverage", "Linear"} or isinstance(layer, nn.BatchNorm2d)


class TestMatrices:
    @pytest.mark.parametrize(
        "function",
        [
            lambda w, b, x: torch.addmm(b, x, w.t()),
            lambda w, b, x: x @ w.t() + b,
            lambda w, b, x: torch.mm(x, w.t()) - b,
            lambda w, b, x: torch.matmul(x, torch.ones_like(w.t())) * b,
        ],
    )
    def test_written_out(self, function: object) -> None:
        layer = nn.Linear(6, 4)
        net = Holder(layer, lambda x: function(layer.weight, layer.bias, x))  # type: ignore[operator]
        assert kinds(check(net, (6,))) == {"Linear": 1}


class TestFusing:
    def test_binary_block(self) -> None:
        # conv, + residual, batch norm, hardtanh: one step.
        conv, bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), randomized(nn.BatchNorm2d(4))
        net = Holder(nn.ModuleList([conv, bn]), lambda x: F.hardtanh(bn(conv(x) + x)))
        (step,) = check(net, (4, 6, 6)).plan.steps
        assert isinstance(step, p.Conv2d)
        e = step.epilogue
        assert e.residual == 0
        assert e.activation == p.Activation("clamp", -1.0, 1.0)
        assert e.scale is not None
        assert e.residual_scale is not None
        assert torch.equal(e.scale, e.residual_scale)

    def test_scale_on_the_residual(self) -> None:
        # The batch norm of an identity branch, as in RepVGG, is a scale of the residual.
        conv, bn = nn.Conv2d(4, 4, 3, padding=1), randomized(nn.BatchNorm2d(4))
        for function in (lambda x: F.relu(bn(x) + conv(x)), lambda x: F.relu(conv(x) - bn(x))):
            assert kinds(check(Holder(nn.ModuleList([conv, bn]), function), (4, 6, 6))) == {"Conv2d": 1}

    def test_addition_goes_to_the_one_computed_last(self) -> None:
        a, b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        for first, second in ((a, b), (b, a)):

            def forward(x: Tensor, first: nn.Module = first, second: nn.Module = second) -> Tensor:
                y = first(x)
                return F.relu(second(x) + y)

            steps = check(Holder(nn.ModuleList([a, b]), forward), (3, 5, 5)).plan.steps
            names = ["net.0.weight", "net.1.weight"][:: 1 if first is a else -1]
            assert [step.weight.name for step in steps if isinstance(step, p.Conv2d)] == names
            last = steps[-1]
            assert isinstance(last, p.Conv2d)
            assert last.epilogue.residual == steps[0].y

    def test_not_what_something_else_reads(self) -> None:
        conv = nn.Conv2d(3, 3, 1)
        net = Holder(conv, lambda x: torch.cat([y := conv(x), F.relu(y)], 1))
        assert kinds(check(net, (3, 4, 4))) == {"Conv2d": 1, "Pointwise": 1, "Concat": 1}
        net = Holder(conv, lambda x: (y := conv(x)) + F.relu(y))
        assert kinds(check(net, (3, 4, 4))) == {"Conv2d": 1, "Pointwise": 2}

    def test_two_residuals(self) -> None:
        conv = nn.Conv2d(3, 3, 1)
        net = Holder(conv, lambda x: conv(x) + x + x.tanh())
        result = check(net, (3, 4, 4))
        assert kinds(result) == {"Conv2d": 1, "Pointwise": 2}

    def test_not_past_an_activation(self) -> None:
        conv, bn = nn.Conv2d(3, 3, 1), randomized(nn.BatchNorm2d(3))
        net = Holder(nn.ModuleList([conv, bn]), lambda x: bn(F.silu(conv(x))))
        assert kinds(check(net, (3, 4, 4))) == {"Conv2d": 1, "Pointwise": 1}

    def test_epilogues_say_nothing_needless(self) -> None:
        (step,) = check(nn.Conv2d(3, 4, 1, bias=False), (3, 4, 4)).plan.steps
        assert isinstance(step, p.Conv2d)
        assert step.epilogue == p.Epilogue()

    def test_dead_branches(self) -> None:
        a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(x: Tensor) -> Tensor:
            F.relu(b(x)).mean()
            return a(x).chunk(3, 1)[1]

        result = check(Holder(nn.ModuleList([a, b]), forward), (3, 4, 4))
        assert kinds(result) == {"Conv2d": 1, "Crop": 1}
        assert set(result.weights) == {"net.0.weight"}

    def test_values_are_numbered_in_order(self) -> None:
        plan = lowered(settled(MobileNet(), (3, 20, 24)), (3, 20, 24), dtype=torch.float32).plan
        assert plan.input == 0
        assert [step.y for step in plan.steps] == list(range(1, len(plan.values)))
        assert plan.output == len(plan.values) - 1


class TestProperties:
    @given(st.integers(0, 2**32 - 1))
    def test_fused_plans_compute_the_same(self, seed: int) -> None:
        plan, weights = random_plan(seed)
        x = torch.randn(2, *image(plan.values[plan.input]), dtype=torch.float64)
        expected = reference.run(plan, weights, x)
        fused = fuse(plan)
        torch.testing.assert_close(reference.run(fused, weights, x), expected, rtol=1e-12, atol=1e-12)
        assert len(fused.steps) <= len(plan.steps)
        known = {fused.input}
        for step in fused.steps:
            assert set(reads(step)) <= known
            known.add(step.y)
        assert known == set(range(len(fused.values)))

    @given(st.integers(0, 2**32 - 1))
    def test_windows_in_a_row_are_one(self, seed: int) -> None:
        draw = random.Random(seed)
        plan = p.Plan(0, 0, 4, [p.Value(4, 7, 9)])
        for _ in range(draw.randint(1, 4)):
            plan.steps.append(random_crop(draw, plan))
        plan.output = len(plan.values) - 1
        x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
        fused = fuse(plan)
        assert torch.equal(reference.run(fused, {}, x), reference.run(plan, {}, x))
        if reference.run(fused, {}, torch.ones(1, 4, 7, 9)).any():
            assert len(fused.steps) == 1


def random_plan(seed: int) -> tuple[p.Plan, dict[str, Tensor]]:
    """Layers, additions, batch norms, activations and windows in any order, on values of one size."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    plan = p.Plan(0, 0, 4, [p.Value(3, 4, 5)])
    weights = {"w": torch.randn(3, 3, 1, 1, dtype=torch.float64), "v": torch.randn(3, 3, 3, 3, dtype=torch.float64)}
    for _ in range(draw.randint(1, 10)):
        x, residual = (draw.randrange(max(0, len(plan.values) - 3), len(plan.values)) for _ in range(2))
        plan.values.append(p.Value(3, 4, 5))
        y = len(plan.values) - 1
        kind = draw.choice(["conv", "pointwise", "pointwise", "pointwise", "crop"])
        if kind == "crop":
            # Down a row and to the left: what moves out is lost, and zeros come in.
            plan.steps.append(p.Crop(x, y, (0, 0, 1), (1, 1), (3, 3, 4), (0, 1, 0)))
            continue
        vectors = [torch.randn(3, dtype=torch.float64) if draw.random() < 0.5 else None for _ in range(3)]
        activation = draw.choice(
            [p.Activation(), p.Activation("clamp"), p.Activation("clamp", -1.0, 0.5), p.Activation("silu")]
        )
        added = residual if draw.random() < 0.4 and residual != x else None
        epilogue = p.Epilogue(vectors[0], vectors[1], added, None if added is None else vectors[2], activation)
        if kind == "conv":
            name, pad = draw.choice([("w", 0), ("v", 1)])
            plan.steps.append(p.Conv2d(x, y, p.Weight(name), (1, 1, pad, pad, pad, pad, 1, 1), 1, epilogue))
        else:
            plan.steps.append(p.Pointwise(x, y, epilogue))
    plan.output = len(plan.values) - 1
    return plan, weights


def random_crop(draw: random.Random, plan: p.Plan) -> p.Crop:
    """A window of the last value, put into a new one."""
    source = image(plan.values[-1])
    steps = (1, draw.randint(1, 3), draw.randint(1, 3))
    first = tuple(draw.randrange(size) for size in source)
    most = [(size - start - 1) // step + 1 for size, start, step in zip(source, first, steps, strict=True)]
    count = tuple(draw.randint(1, n) for n in most)
    offset = tuple(draw.randint(0, 2) for _ in source)
    plan.values.append(p.Value(*(n + o + draw.randint(0, 2) for n, o in zip(count, offset, strict=True))))
    y = len(plan.values) - 1
    return p.Crop(y - 1, y, first, steps[1:], count, offset)  # type: ignore[arg-type]


class TestCapture:
    def test_the_network_is_as_it_was(self) -> None:
        net = dk.slim(dk.models.resnet20(), (0.5, 1.0))
        dk.calibrate_bn(net, [torch.randn(4, 3, 32, 32)])
        net.train()
        net.layer2.eval()
        dk.select(net, 0.5)
        flags = [m.training for m in net.modules()]
        before = {name: (t, t._version, t.clone()) for name, t in net.state_dict(keep_vars=True).items()}
        lowered(net, (3, 32, 32), 1.0, torch.float32)
        assert [m.training for m in net.modules()] == flags
        assert dk.subnets.active(net) == 0.5
        for name, tensor in net.state_dict(keep_vars=True).items():
            known, version, values = before[name]
            assert tensor is known
            assert tensor._version == version
            assert torch.equal(tensor, values)

    def test_the_flags_come_back_after_an_error(self) -> None:
        net = Function(torch.fft.fft2).train()
        with pytest.raises(ValueError, match="fft"):
            lowered(net, (3, 4, 4))
        assert net.training

    def test_in_inference_mode_and_with_gradients(self) -> None:
        net = settled(dk.models.resnet20(), (3, 16, 16))
        with torch.inference_mode():
            a = lowered(net, (3, 16, 16), dtype=torch.float32)
        b = lowered(net.requires_grad_(), (3, 16, 16), dtype=torch.float32)
        x = torch.randn(2, 3, 16, 16)
        y, z = (reference.run(r.plan, r.weights, x) for r in (a, b))
        assert torch.equal(y, z)
        assert not z.requires_grad

    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_any_batch(self, batch: int) -> None:
        net = settled(SAMPLES["se"][0](), (3, 6, 5))
        check(net, (3, 6, 5), batch=batch)

    def test_writes_in_place(self) -> None:
        conv = nn.Conv2d(3, 3, 1)

        def alone(x: Tensor) -> Tensor:
            return F.relu_(conv(x)).add_(1).mul_(x)

        def seen(x: Tensor) -> Tensor:
            y = conv(x)
            z = y.flatten(2)
            y.relu_()
            return (z.view_as(y) + y).add_(y)

        def shared(x: Tensor) -> Tensor:
            y = F.dropout(conv(x), training=False)
            z = F.dropout(y, training=False)
            z += 1
            return y * z

        for function in (alone, seen, shared):
            check(Holder(conv, function), (3, 4, 4))

    def test_writes_to_the_argument(self) -> None:
        result = lowered(Function(lambda x: F.relu_(x) * 2 + x), (3, 4, 4))
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        before = x.clone()
        assert torch.equal(reference.run(result.plan, result.weights, x), 3 * x.relu())
        assert torch.equal(x, before)


class TestConstants:
    def test_a_computed_weight_is_computed_once(self) -> None:
        net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
        result = check(net, (3, 5, 5))
        assert kinds(result) == {"Conv2d": 1}
        (weight,) = result.weights.values()
        assert isinstance(weight, Tensor)
        assert torch.equal(weight, net[0].weight)

    def test_tied_weights_are_one(self) -> None:
        model, x = sample("tied")
        result = check(model, tuple(x.shape[1:]))
        assert set(result.weights) == {"stem.weight", "twice.weight", "head.weight"}

    def test_a_tensor_that_is_neither_parameter_nor_buffer(self) -> None:
        loose = torch.randn(4, 3, 1, 1, dtype=torch.float64)
        result = check(Function(lambda x: F.conv2d(F.conv2d(x, loose), loose[:, :1].expand(4, 4, 1, 1))), (3, 4, 4))
        assert len(result.weights) == 2
        again = check(Function(lambda x: F.conv2d(F.relu(x), loose)), (3, 4, 4))
        assert set(again.weights) < set(result.weights)

    def test_new_values(self) -> None:
        net = settled(dk.models.resnet20(), (3, 16, 16)).double()
        captured = capture(net, (3, 16, 16), torch.float64)
        with torch.no_grad():
            net.conv1.weight.mul_(2)
        net.bn1.running_mean = torch.randn(16, dtype=torch.float64)
        net.linear.bias = nn.Parameter(torch.randn(10, dtype=torch.float64))
        result = lower(captured, tensors_of(net), torch.float64)
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        with torch.no_grad():
            assert_close(reference.run(result.plan, result.weights, x), net(x), net)
