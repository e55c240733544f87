"""Sub-nets against slices made by hand, masks of the whole network, and the plain networks that extract makes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from slim_models import NON_UNIFORM, SAMPLES, Dense, Residual, assert_same, masked, randomized, sample
from torch import Tensor, nn

from dynkern import subnets as dk
from dynkern.nn import SlicedConv2d, SlicedLinear, SwitchableBatchNorm2d
from dynkern.nn.dynamic import SlicedModule

WIDTHS = (0.25, 0.5, 0.7, 1.0)


def calibrated(net: nn.Module, x: Tensor) -> nn.Module:
    dk.calibrate_bn(net, [x, x.flip(0)])
    return net.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SAMPLES)
def test_sub_nets_equal_extracted_networks(name: str, dtype: torch.dtype) -> None:
    model, x = sample(name, dtype)
    whole = model.eval()(x)
    net = calibrated(dk.slim(model, (*WIDTHS, NON_UNIFORM[name])), x)
    for key in dk.keys(net):
        plain = dk.extract(net, key)
        assert not any(isinstance(m, nn.Module) and "Sliced" in type(m).__name__ for m in plain.modules())
        dk.select(net, key)
        assert_same(net(x), plain(x), plain)
    dk.select(net, 1.0)
    assert_same(net(x), whole, net)


@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "residual"])
def test_sub_nets_equal_the_whole_network_with_masked_weights(name: str) -> None:
    model, x = sample(name)
    plain = copy.deepcopy(model).eval()
    specs: dict[Any, Any] = {w: w for w in WIDTHS} | {"odd": NON_UNIFORM[name]}
    net = calibrated(dk.slim(model, specs.values()), x)
    for key, spec in specs.items():
        dk.select(net, key)
        assert_same(net(x), masked(plain, net, key, spec)(x), plain)


def count(channels: int, width: float) -> int:
    return max(1, int(channels * width + 0.5))


@pytest.mark.parametrize("width", WIDTHS)
def test_residual_network_sliced_by_hand(width: float) -> None:
    model, x = sample("residual")
    p: Any = copy.deepcopy(model)
    c6, c8, c12, c20 = (count(c, width) for c in (6, 8, 12, 20))

    def bn(x: Tensor, m: Any) -> Tensor:
        c = x.shape[1]
        return F.batch_norm(x, None, None, m.weight[:c], m.bias[:c], training=True)

    y = F.relu(bn(F.conv2d(x, p.stem.weight[:c8], padding=1), p.stem_bn))
    inner = F.relu(F.conv2d(y, p.a.weight[:c6, :c8], p.a.bias[:c6], padding=1))
    y = F.relu(bn(F.conv2d(inner, p.b.weight[:c8, :c6]), p.b_bn) + y)
    short = bn(F.conv2d(y, p.shortcut[0].weight[:c12, :c8], stride=2), p.shortcut[1])
    y = F.relu(F.conv2d(y, p.c.weight[:c12, :c8], p.c.bias[:c12], stride=2, padding=1) + short)
    first = (c20 - c12) // 2
    padded = torch.zeros(y.shape[0], c20, *y.shape[2:], dtype=y.dtype)
    padded[:, first : first + c12] = y
    y = F.relu(F.conv2d(y, p.d.weight[:c20, :c12], p.d.bias[:c20], padding=2, dilation=2) + padded)
    y = F.linear(y.mean((2, 3)), p.head.weight[:, :c20], p.head.bias)

    net = dk.slim(model, WIDTHS).train()
    dk.select(net, width)
    assert_same(net(x), y, p)


@pytest.mark.parametrize("width", WIDTHS)
def test_dense_network_sliced_by_hand(width: float) -> None:
    model, x = sample("dense")
    p: Any = copy.deepcopy(model)
    c4, c6, c10 = (count(c, width) for c in (4, 6, 10))
    second = [*range(c6), *range(6, 6 + c4)]
    third = [*second, *range(10, 10 + c4)]
    pixels = [4 * c + i for c in (*range(c10), *(10 + t for t in third)) for i in range(4)]

    def norm(parts: list[Tensor], m: Any, index: list[int]) -> Tensor:
        return F.relu(F.batch_norm(torch.cat(parts, 1), None, None, m.weight[index], m.bias[index], training=True))

    parts = [F.conv2d(x, p.stem.weight[:c6], p.stem.bias[:c6], padding=1)]
    parts.append(F.conv2d(norm(parts, p.bn1, list(range(c6))), p.conv1.weight[:c4, :c6], padding=1))
    parts.append(F.conv2d(norm(parts, p.bn2, second), p.conv2.weight[:c4][:, second], padding=1))
    y = norm(parts, p.bn3, third)
    y = F.avg_pool2d(torch.cat([F.conv2d(y, p.conv3.weight[:c10][:, third]), y], 1), 2)
    y = F.linear(y.flatten(1), p.head.weight[:, pixels], p.head.bias)

    net = dk.slim(model, WIDTHS).train()
    dk.select(net, width)
    assert_same(net(x), y, p)


class Program(nn.Module):
    """A random network: each step takes the newest tensor."""

    def __init__(self, steps: list[tuple[str, int]], flat: bool) -> None:
        super().__init__()
        self.steps = steps
        self.flat = flat
        self.layers = nn.ModuleList([nn.Conv2d(2, 5, 1)])
        channels = [5]
        for kind, n in steps:
            c = channels[-1]
            layer: nn.Module = nn.Identity()
            if kind == "conv":
                layer, c = nn.Conv2d(c, n, 3, padding=1), n
            elif kind == "add":
                layer = nn.Conv2d(c, c, 1, bias=False)
            elif kind == "norm":
                layer = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU())
            elif kind == "depthwise":
                layer = nn.Conv2d(c, c, 3, padding=1, groups=c)
            elif kind == "gate":
                gate = nn.Conv2d(c, 3, 1), nn.ReLU(), nn.Conv2d(3, c, 1), nn.Sigmoid()
                layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), *gate)
            elif kind == "cat":
                c += channels[n % len(channels)]
            self.layers.append(layer)
            channels.append(c)
        self.head = nn.Linear(channels[-1] * (9 if flat else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [self.layers[0](x)]
        for (kind, n), layer in zip(self.steps, list(self.layers)[1:], strict=True):
            y = layer(tensors[-1])
            if kind == "add":
                y = y + tensors[-1]
            elif kind == "gate":
                y = y * tensors[-1]
            elif kind == "cat":
                y = torch.cat([tensors[n % len(tensors)], y], 1)
            tensors.append(y)
        y = tensors[-1]
        return self.head(torch.flatten(y, 1) if self.flat else y.mean((-1, -2)))


KINDS = st.sampled_from(["conv", "add", "norm", "depthwise", "gate", "cat"])


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(KINDS, st.integers(1, 9)), max_size=8),
    flat=st.booleans(),
    width=st.sampled_from([0.1, 0.3, 0.5, 0.85]),
    divisor=st.integers(1, 3),
)
def test_random_networks(steps: list[tuple[str, int]], flat: bool, width: float, divisor: int) -> None:
    torch.manual_seed(1)
    model = randomized(Program(steps, flat)).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    plain = copy.deepcopy(model).eval()
    net = calibrated(dk.slim(model, (width, 1.0), divisor), x)
    dk.select(net, width)
    assert_same(net(x), masked(plain, net, width, width, divisor)(x), plain)
    assert_same(net(x), dk.extract(net, width)(x), plain)


@pytest.mark.parametrize("key", [0.5, "odd"])
@pytest.mark.parametrize("name", ["residual", "dense", "mobile", "mlp"])
def test_gradients_flow_to_active_slices_alone_and_equal_those_of_the_extracted_network(name: str, key: Any) -> None:
    model, x = sample(name)
    net = dk.slim(model, (0.5, 1.0, NON_UNIFORM[name])).train()
    plain = dk.extract(net, key)
    dk.select(net, key)
    net(x).square().sum().backward()
    plain(x).square().sum().backward()
    for layer_name, layer in net.named_modules():
        if not isinstance(layer, (SlicedConv2d, SlicedLinear)):
            continue
        s, other = layer.slices[key], plain.get_submodule(layer_name)
        depthwise = isinstance(layer, SlicedConv2d) and layer.groups > 1
        rows = (slice(0, s.inputs) if s.in_index is None else s.in_index) if depthwise else s.rows
        expected = torch.zeros_like(layer.weight)
        part = expected[rows]
        part[:, slice(None) if depthwise else s.columns] = other.weight.grad
        expected[rows] = part
        assert_same(layer.weight.grad, expected, plain)
        if layer.bias is not None:
            expected = torch.zeros_like(layer.bias)
            expected[rows] = other.bias.grad
            assert_same(layer.bias.grad, expected, plain)


def test_parameters_stay_the_same_objects_and_an_optimiser_keeps_working() -> None:
    model, x = sample("residual")
    before = {n: p for n, p in model.named_parameters() if "bn" not in n and "shortcut.1" not in n}
    stem_bn = model.stem_bn
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    net = dk.slim(model, (0.5, 1.0))
    assert net is model
    after = dict(net.named_parameters())
    assert all(after[n] is p for n, p in before.items())
    assert net.stem_bn.bn[1] is stem_bn
    dk.select(net, 0.5)
    old = net.a.weight.detach().clone()
    net(x).square().sum().backward()
    optimiser.step()
    changed = (net.a.weight != old).flatten(1).any(1)
    assert changed.tolist() == [True] * 3 + [False] * 3


def test_revert_gives_back_the_plain_network_with_its_weights_as_they_are_now() -> None:
    model, x = sample("residual")
    model(x)
    modules = dict(model.named_modules())
    types = {n: type(m) for n, m in modules.items()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    net = dk.slim(model, (0.5, 1.0))
    calibrated(net, x)
    back = dk.revert(net)
    assert back is model
    assert dict(back.named_modules()) == modules
    assert {n: type(m) for n, m in modules.items()} == types
    assert list(back.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in back.state_dict().items())
    assert not any("selection" in vars(m) or "slices" in vars(m) or "_dynkern" in vars(m) for m in back.modules())
    with torch.no_grad():
        dk.slim(model, (0.5, 1.0)).a.weight.add_(1)
    assert torch.equal(dk.revert(model).a.weight, state["a.weight"] + 1)


def test_batch_norm_of_the_source_survives_sub_nets_that_are_all_narrow() -> None:
    model, x = sample("residual")
    bn, y = model.b_bn, model.eval()(x)
    net = dk.slim(model, (0.25, 0.5))
    assert dk.active(net) == 0.5
    assert net.b_bn.full is bn
    assert dk.revert(calibrated(net, x)).b_bn is bn
    assert torch.equal(model(x), y)


def test_the_whole_network_is_selected_first_wherever_it_stands() -> None:
    model, x = sample("mobile")
    y = model.eval()(x)
    net = dk.slim(model, (1, 0.5))
    assert dk.active(net) == 1.0
    assert_same(net(x), y, net)


def test_two_sub_nets_that_are_the_whole_network_both_have_its_statistics() -> None:
    model, x = sample("residual")
    y = model.eval()(x)
    net = dk.slim(model, (1.0, dk.SubNet("all", {"stem": 8})))
    for key in (1.0, "all"):
        dk.select(net, key)
        assert_same(net(x), y, net)
    assert net.stem_bn.bn[0].weight is not net.stem_bn.bn[1].weight


@pytest.mark.parametrize(
    ("channels", "width", "divisor", "expected"),
    [
        (16, 0.25, 1, 4),
        (3, 0.1, 1, 1),
        (10, 0.25, 1, 3),
        (50, 0.29, 1, 15),
        (10, 0.35, 1, 4),
        (64, 0.25, 8, 16),
        (60, 0.25, 8, 16),
        (4, 0.25, 8, 4),
        (12, 0.3, 8, 8),
        (64, 0.9, 8, 56),
        (30, 1.0, 8, 30),
    ],
)
def test_uniform_counts(channels: int, width: float, divisor: int, expected: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 2, 1))
    net = dk.slim(model, (width,), divisor)
    dk.select(net, width)
    assert net[0](torch.randn(1, 3, 2, 2)).shape[1] == expected
    assert dk.extract(net, width)[2].in_channels == expected


def test_input_and_output_channels_are_never_sliced() -> None:
    for name in SAMPLES:
        model, x = sample(name)
        y = model(x)
        net = dk.slim(model, (0.25,)).train()
        assert net(x).shape == y.shape


def test_intermediate_results_that_are_returned_are_not_sliced() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.a(x)
            return {"y": self.c(F.relu(self.b(y))), "features": [y]}

    net: Any = dk.slim(Two(), (0.5,))
    out = net(torch.randn(1, 3, 4, 4))
    assert out["features"][0].shape[1] == 8
    assert net.b.slices[0.5].outputs == 4


def test_layers_that_run_in_training_alone_are_sliced_too() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.aux, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
            x = self.a(x) * scale
            if mask is not None:
                x = x * mask
            return self.head(x) + self.aux(x) if self.training else self.head(x)

    net = dk.slim(Aux(), (0.5,)).train()
    assert net(torch.randn(2, 3, 4, 4)).shape == (2, 2, 4, 4)
    assert net.eval()(torch.randn(2, 3, 4, 4)).shape == (2, 2, 4, 4)


def test_forward_that_stores_tensors_leaves_no_trace_in_the_model() -> None:
    class Keeps(nn.Sequential):
        seen = None

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self[0](x)
            return self[1](self.seen)

    model = Keeps(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    dk.slim(model, (0.5,))
    assert model.seen is None
    assert not model.training


@pytest.mark.parametrize("name", ["residual", "dense"])
def test_copies_pickles_and_state_dicts(name: str) -> None:
    model, x = sample(name)
    net = calibrated(dk.slim(model, (0.5, 1.0, NON_UNIFORM[name])), x)
    dk.select(net, "odd")
    y = net(x)
    stream = io.BytesIO()
    torch.save(net, stream)
    stream.seek(0)
    for other in (copy.deepcopy(net), torch.load(stream, weights_only=False)):
        assert torch.equal(other(x), y)
        dk.select(other, 0.5)
        assert dk.active(net) == "odd"
        assert_same(other(x), dk.extract(net, 0.5)(x), net)
    fresh, _ = sample(name, seed=5)
    fresh = dk.slim(fresh, (0.5, 1.0, NON_UNIFORM[name])).eval()
    dk.select(fresh, "odd")
    with pytest.raises(RuntimeError, match="calibrate_bn"):
        fresh(x)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), y)


def test_state_dict_keys() -> None:
    plain = set(Residual().state_dict())
    slim = set(dk.slim(Residual(), (0.5, 1.0)).state_dict())
    norms = ("stem_bn", "b_bn", "shortcut.1")
    expected = {k for k in plain if not k.startswith(norms)}
    expected |= {k.replace(n, f"{n}.bn.{i}") for k in plain for n in norms if k.startswith(n) for i in (0, 1)}
    assert slim == expected


def test_other_dtypes() -> None:
    model, x = sample("dense", torch.float32)
    net = calibrated(dk.slim(model, (0.5, 1.0, NON_UNIFORM["dense"])), x)
    dk.select(net, "odd")
    y = net(x)
    assert_same(net.double()(x.double()).float(), y, net)
    half = net.half()(x.half())
    assert half.dtype == torch.float16
    index = net.conv2.slices["odd"].in_index
    assert index is not None
    assert index.dtype == torch.int64


def test_moving_to_another_device_moves_index_sets() -> None:
    net = dk.slim(Dense(), (0.5,)).to("meta")
    index = net.conv2.slices[0.5].in_index
    assert index is not None
    assert index.device.type == "meta"


@pytest.mark.parametrize("name", ["residual", "dense"])
def test_torch_compile_follows_the_selection(name: str) -> None:
    model, x = sample(name, torch.float32)
    net = calibrated(dk.slim(model, (0.5, 1.0, NON_UNIFORM[name])), x)
    torch.compiler.reset()
    whole_graph = torch.compile(net, backend="aot_eager", fullgraph=True)
    broken = torch.compile(net, backend="eager")
    with torch.no_grad():
        for key in (0.5, 1.0, "odd", 0.5):
            dk.select(net, key)
            assert_same(whole_graph(x), net(x), net)
        for key in (1.0, "odd"):
            with dk.using(net, key):
                assert_same(broken(x), dk.extract(net, key)(x), net)
        assert_same(broken(x), dk.extract(net, 0.5)(x), net)
    torch.compiler.reset()


def test_training_step_under_torch_compile() -> None:
    model, x = sample("residual", torch.float32)
    net = dk.slim(model, (0.5, 1.0)).train()
    dk.select(net, 0.5)
    plain = dk.extract(net, 0.5)
    torch.compiler.reset()
    torch.compile(net, backend="aot_eager", fullgraph=True)(x).sum().backward()
    torch.compiler.reset()
    plain(x).sum().backward()
    assert_same(net.head.weight.grad[:, :10], plain.head.weight.grad, plain)
    # Statistics count as filled by compiled training too.
    net.eval()(x)


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export_takes_the_selected_sub_net(strict: bool) -> None:
    model, x = sample("dense", torch.float32)
    net = calibrated(dk.slim(model, (0.5, 1.0, NON_UNIFORM["dense"])), x)
    for key in dk.keys(net):
        dk.select(net, key)
        exported = torch.export.export(net, (x,), strict=strict)
        dk.select(net, 1.0)
        assert_same(exported.module()(x), dk.extract(net, key)(x), net)


def test_slim_network_inside_another_module() -> None:
    model, x = sample("mobile")
    wrapped = nn.Sequential(calibrated(dk.slim(model, (0.5, 1.0)), x), nn.Flatten())
    dk.select(wrapped, 0.5)
    assert dk.active(model) == 0.5
    assert dk.keys(wrapped) == (0.5, 1.0)
    assert_same(wrapped(x), dk.extract(wrapped, 0.5)(x), wrapped)
    dk.revert(wrapped)
    assert not any(isinstance(m, (SlicedModule, SwitchableBatchNorm2d)) and m.selection for m in wrapped.modules())


def test_one_activation_module_used_twice() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(2, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Conv2d(4, 2, 1))
    net = dk.slim(model, (0.5,))
    assert net(torch.randn(1, 2, 3, 3)).shape == (1, 2, 3, 3)
