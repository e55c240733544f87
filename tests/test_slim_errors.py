"""What cannot be made slim is refused, by name, and left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slim_models import Residual, sample
from torch import Tensor, nn

from dynkern import subnets as dk
from dynkern.nn import ChannelPad


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize(
    ("subnets", "error", "says"),
    [
        ((), ValueError, "at least one sub-net, got none"),
        ((float("nan"),), ValueError, "got nan"),
        ((float("inf"),), ValueError, "got inf"),
        ((0.0,), ValueError, r"above 0 and at most 1, got 0\.0"),
        ((-0.5,), ValueError, "got -0.5"),
        ((1.5,), ValueError, "got 1.5"),
        ((0.5, 0.5), ValueError, "0.5 twice"),
        ((1, 1.0), ValueError, "1.0 twice"),
        ((dk.SubNet("a", {}), dk.SubNet("a", {"0": 2})), ValueError, "'a' twice"),
        (("0.5",), TypeError, "a width or a SubNet, got '0.5'"),
        ((True,), TypeError, "got True"),
        ("0.5", TypeError, "subnets: expected widths"),
        (0.5, TypeError, "subnets: expected widths"),
        ({0.5: 1}, TypeError, "subnets: expected widths"),
        ((dk.SubNet("a", {"9": 2}),), ValueError, r"'a': layer '9': expected one of \['0', '2'\]"),
        ((dk.SubNet("a", {"1": 2}),), ValueError, "layer '1'"),
        ((dk.SubNet("a", {"0": 9}),), ValueError, "layer '0': has 8 channels, got 9"),
        ((dk.SubNet("a", {"0": [0, 8]}),), ValueError, "layer '0': has 8 channels"),
        ((dk.SubNet("a", {"2": 1}),), ValueError, "layer '2': keeps all its 2 channels .* output"),
    ],
)
def test_bad_sub_nets(subnets: Any, error: type[Exception], says: str) -> None:
    model = pair()
    with pytest.raises(error, match=says):
        dk.slim(model, subnets)
    assert [type(m) for m in model] == [nn.Conv2d, nn.ReLU, nn.Conv2d]


@pytest.mark.parametrize(("divisor", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_divisor(divisor: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="divisor"):
        dk.slim(pair(), (0.5,), divisor)


@pytest.mark.parametrize(
    ("name", "channels", "error", "says"),
    [
        ("", {}, ValueError, "name: expected at least one character"),
        (3, {}, TypeError, "name: expected a string, got int"),
        ("a", [1], TypeError, "channels: expected a mapping"),
        ("a", {3: 1}, TypeError, "expected layer names, got 3"),
        ("a", {"x": 0}, ValueError, "at least one channel, got 0"),
        ("a", {"x": []}, ValueError, "at least one, got"),
        ("a", {"x": [1, 1]}, ValueError, r"different channels >= 0, at least one, got \[1, 1\]"),
        ("a", {"x": [-1]}, ValueError, "different channels >= 0"),
        ("a", {"x": 0.5}, TypeError, "a count or a list of channels, got 0.5"),
        ("a", {"x": [0.5]}, TypeError, "a count or a list"),
        ("a", {"x": True}, TypeError, "a count or a list"),
        ("a", {"x": "12"}, TypeError, "a count or a list"),
        ("a", {"x": None}, TypeError, "a count or a list"),
    ],
)
def test_bad_sub_net(name: Any, channels: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        dk.SubNet(name, channels)


def test_sub_net_through_json() -> None:
    subnet = dk.SubNet("half", {"a.b": 3, "c": [4, 0], "d": [0, 1, 2]})
    assert subnet.channels == {"a.b": 3, "c": (4, 0), "d": 3}
    again = dk.SubNet.from_json(subnet.to_json())
    assert again == subnet
    assert dk.SubNet("t", {"c": torch.tensor([2, 1])}).channels == {"c": (2, 1)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": "a"}', '{"name": "a", "channels": {}, "x": 1}', '{"name": "", "channels": {}}']
)
def test_bad_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"text|name"):
        dk.SubNet.from_json(text)


def test_coupled_layers_that_disagree_are_both_named() -> None:
    model, _ = sample("residual")
    with pytest.raises(ValueError, match=r"'stem' and 'b' are coupled .* got 3 and \(0, 2, 1\)"):
        dk.slim(model, (dk.SubNet("odd", {"stem": 3, "b": [0, 2, 1]}),))
    assert type(model.stem) is nn.Conv2d


def test_channel_pad_that_would_have_to_drop_channels() -> None:
    model, _ = sample("residual")
    with pytest.raises(ValueError, match=r"'pad' \(ChannelPad\) cannot go from 12 channels to 4"):
        dk.slim(model, (dk.SubNet("odd", {"d": 4}),))


def test_layer_with_the_channels_of_a_concatenation_cannot_be_named() -> None:
    model, _ = sample("mobile")
    with pytest.raises(ValueError, match="'joined': has the channels of a concatenation"):
        dk.slim(model, (dk.SubNet("odd", {"joined": 4}),))


def test_what_is_no_module() -> None:
    with pytest.raises(TypeError, match="model: expected a module, got int"):
        dk.slim(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [pair, lambda: nn.Sequential(nn.Flatten(), pair())])
def test_slim_twice(model: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    dk.slim(net, (0.5,))
    for again in (net, nn.Sequential(net)):
        with pytest.raises(ValueError, match="slim already"):
            dk.slim(again, (0.5,))


@pytest.mark.parametrize(
    "model",
    [
        nn.Conv2d(3, 8, 1),
        nn.Linear(3, 8),
        nn.BatchNorm2d(3),
        nn.Sequential(nn.Conv2d(3, 8, 1)),
        nn.Sequential(nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Softmax(1)),
        nn.Sequential(),
    ],
)
def test_nothing_to_slice(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="nothing to slice"):
        dk.slim(model, (0.5,))


class Around(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, middle: Any, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.middle = middle
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.register_buffer("shift", torch.zeros(1, 8, 1, 1))
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.middle(x) if isinstance(self.middle, nn.Module) else self.middle(self, x))


class Scaled(nn.Conv2d):
    """A convolution of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias)


REFUSED: dict[str, tuple[Any, str]] = {
    "group norm": (nn.GroupNorm(2, 8), r"module 'middle' \(GroupNorm\)"),
    "layer norm": (nn.Sequential(nn.LayerNorm((8, 4, 4))), r"module 'middle.0' \(LayerNorm\)"),
    "instance norm": (nn.InstanceNorm2d(8), r"module 'middle' \(InstanceNorm2d\)"),
    "grouped": (nn.Conv2d(8, 8, 3, padding=1, groups=2), r"module 'middle' \(Conv2d\): a grouped convolution"),
    "multiplier": (nn.Sequential(nn.Conv2d(8, 16, 1, groups=8), nn.Conv2d(16, 8, 1)), r"module 'middle.0' \(Conv2d\)"),
    "transposed": (nn.ConvTranspose2d(8, 8, 1), r"module 'middle' \(ConvTranspose2d\)"),
    "prelu": (nn.PReLU(8), r"module 'middle' \(PReLU\)"),
    "shuffle": (nn.ChannelShuffle(2), r"module 'middle' \(ChannelShuffle\)"),
    "indices": (nn.MaxPool2d(1, return_indices=True), r"module 'middle' \(MaxPool2d\)"),
    "subclass": (Scaled(8, 8, 1), r"function 'conv2d' in module 'middle' \(Scaled\)"),
    "weight norm": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        r"module 'middle' \(ParametrizedConv2d\)",
    ),
    "pad": (lambda m, x: F.pad(x, (0, 0, 0, 0, 1, -1)), r"function 'pad' in the model's forward: it pads .*ChannelPad"),
    "view": (lambda m, x: x.view(-1, 8, 4, 4), r"function 'view' in the model's forward"),
    "fixed view": (lambda m, x: x.reshape(x.size(0), -1, 4, 4), "function 'reshape'"),
    "permute": (lambda m, x: x.permute(0, 1, 3, 2), "function 'permute'"),
    "chunk": (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), "function 'chunk'"),
    "pick": (lambda m, x: x[:, :4], "function 'getitem' in the model's forward: it takes some of the channels"),
    "mask": (lambda m, x: x[x > 0], "function 'getitem'"),
    "sum": (lambda m, x: torch.einsum("nchw,nchw->nchw", x, x), "function 'einsum'"),
    "function": (lambda m, x: F.group_norm(x, 2), "function 'group_norm'"),
    "parameter": (lambda m, x: x * m.gamma, r"function 'mul' .* parameter or buffer of shape \(8, 1, 1\)"),
    "buffer": (lambda m, x: x + m.shift, r"function 'add' .* shape \(1, 8, 1, 1\)"),
    "axis": (lambda m, x: m.aside(x), r"module 'aside' \(Linear\): it works on another axis"),
    "merged": (lambda m, x: x.flatten(0, 1).unflatten(0, (-1, 8)), "function 'flatten' .* it merges the channels"),
    "squeeze": (lambda m, x: x.squeeze(1), "function 'squeeze'"),
    "norm axis": (lambda m, x: m.norm(x[:, None])[:, 0], r"module 'norm' \(BatchNorm2d\): it normalises another axis"),
    "batch join": (lambda m, x: torch.cat([x, x[:, :, :, 0]], 1), "function 'cat'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    middle, says = REFUSED[case]
    model = Around(middle)
    model.aside, model.norm = nn.Linear(4, 4), nn.BatchNorm2d(1)
    before = {name: type(m) for name, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        dk.slim(model, (0.5,))
    assert {name: type(m) for name, m in model.named_modules()} == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any({"selection", "slices", "_dynkern"} & set(vars(m)) for m in model.modules())
    assert model.training


@pytest.mark.parametrize("case", REFUSED)
def test_not_refused_where_no_channel_is_sliced(case: str) -> None:
    middle, _ = REFUSED[case]

    class Pinned(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = self.middle(y) if isinstance(self.middle, nn.Module) else self.middle(self, y)
            return self.extra(x), y, z  # type: ignore[return-value]

    model = Pinned(middle)
    model.aside, model.norm, model.extra = nn.Linear(4, 4), nn.BatchNorm2d(1), pair()
    net: Any = dk.slim(model, (0.5,))
    assert net.extra[0].slices[0.5].outputs == 4
    assert type(net.first).__name__ == "SlicedConv2d"
    assert net.first.slices[0.5].outputs == 8


def test_one_module_on_channels_that_are_not_sliced_alike() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1)
            self.shared = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.a(x), self.b(x), self.c(x)
            return self.shared(torch.cat([a, -a], 1)) + self.shared(torch.cat([b, c], 1))

    with pytest.raises(ValueError, match=r"module 'shared' \(Conv2d\): used twice, on channels .* come from 'a', 'b'"):
        dk.slim(Shared(), (0.5,))


def test_weight_that_is_used_outside_of_its_layer() -> None:
    class Penalty(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), self[0].weight.abs().sum()

    with pytest.raises(ValueError, match=r"module '0': the network also uses its parameter '0\.weight' outside of it"):
        dk.slim(Penalty(*pair()), (0.5,))


def test_tied_batch_norm_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    model[3].weight = model[1].weight
    with pytest.raises(ValueError, match=r"'1' \(BatchNorm2d\): it shares a parameter with '3'"):
        dk.slim(model, (0.5,))


def test_hooks_on_a_batch_norm() -> None:
    model = Residual()
    model.b_bn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'b_bn' \(BatchNorm2d\): its forward hooks"):
        dk.slim(model, (0.5,))
    assert type(model.stem) is nn.Conv2d


def test_hooks_on_a_convolution_stay() -> None:
    model, seen = pair(), []
    model[0].register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    dk.slim(model, (0.5,))(torch.randn(1, 3, 2, 2))
    dk.revert(model)(torch.randn(1, 3, 2, 2))
    assert seen == [4, 8]


def test_network_that_cannot_be_traced_names_the_module() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch.fx can trace .* got Around: module 'middle' \(Branch\)"):
        dk.slim(Around(Branch()), (0.5,))


def test_network_that_cannot_be_copied() -> None:
    model = pair()
    model.lock = __import__("threading").Lock()
    with pytest.raises(ValueError, match="model: expected a module that can be copied, got Sequential"):
        dk.slim(model, (0.5,))


def test_networks_that_are_not_slim() -> None:
    plain = pair()
    for call in (
        lambda: dk.select(plain, 0.5),
        lambda: dk.using(plain, 0.5),
        lambda: dk.extract(plain, 0.5),
        lambda: dk.revert(plain),
        lambda: dk.keys(plain),
        lambda: dk.made(plain),
        lambda: dk.calibrate_bn(plain, [torch.randn(1, 3, 2, 2)]),
    ):
        with pytest.raises(ValueError, match="expected a slim network"):
            call()
    with pytest.raises(TypeError, match="net: expected a module, got str"):
        dk.select("net", 0.5)  # type: ignore[arg-type]


def test_revert_of_a_part() -> None:
    net = dk.slim(nn.Sequential(pair(), nn.Conv2d(2, 2, 1)), (0.5,))
    with pytest.raises(ValueError, match="expected the network that was made slim"):
        dk.revert(net[0])


def test_several_slim_networks_in_one() -> None:
    both = nn.Sequential(dk.slim(nn.Sequential(*pair(), nn.Conv2d(2, 3, 1)), (0.5,)), dk.slim(pair(), (0.5,)))
    with pytest.raises(ValueError, match="expected one slim network, got 2"):
        dk.select(both, 0.5)


@pytest.mark.parametrize("key", [0.3, "x", None, True, [0.5], float("nan"), torch.tensor(0.5)])
def test_unknown_sub_net(key: Any) -> None:
    net = dk.slim(pair(), (0.5, 1.0))
    for call in (lambda: dk.select(net, key), lambda: dk.extract(net, key), lambda: dk.using(net, key).__enter__()):
        with pytest.raises(ValueError, match=r"subnet: expected one of \[0.5, 1.0\], got"):
            call()
    assert dk.active(net) == 1.0


def test_argument_with_other_channels_than_the_sub_net() -> None:
    net = dk.slim(pair(), (0.5,))
    with pytest.raises(ValueError, match="x: expected 4 channels, as in the selected sub-net, got 8"):
        net[2](torch.randn(1, 8, 2, 2))


@pytest.mark.parametrize(("channels", "says"), [((0, 4), "got 0 and 4"), ((4, 2), "got 4 and 2")])
def test_bad_channel_pad(channels: tuple[int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChannelPad(*channels)
