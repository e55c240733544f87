"""The compiled network: native plans against the modules, their life, and threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine_models import (
    OPERATORS,
    SHAPE,
    WIDTHS,
    DenseNet,
    Function,
    MobileNet,
    assert_close,
    exact,
    settled,
    slim_net,
    subnet_exact,
)
from slim_models import NON_UNIFORM, SAMPLES
from torch import nn

import dynkern as dk
from dynkern import _C
from dynkern.data import load_cifar10, normalize
from dynkern.engine import Compiled, compiled, reference
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.lower import lower

SMALL = (3, 9, 8)


def small_slim() -> nn.Module:
    return slim_net(SAMPLES["residual"][0](), SMALL)


def check(net: nn.Module, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 3)) -> Compiled:
    """The compiled ``net``, whose results are right for every sub-net."""
    run = dk.compile(net, torch.randn(1, *shape))
    for batch in batches:
        x = torch.randn(batch, *shape)
        for key in run.subnets or (None,):
            y = run(x, subnet=key)
            assert_close(y, subnet_exact(net, x, key), net)
    return run


class TestNetworks:
    @pytest.mark.parametrize("shortcut", ["A", "B", "proj_all"])
    def test_resnet20(self, shortcut: str) -> None:
        check(settled(dk.models.resnet20(shortcut=shortcut), (3, 32, 32)), (3, 32, 32))

    def test_resnet18(self) -> None:
        check(settled(dk.models.resnet18(), (3, 64, 48)), (3, 64, 48))

    def test_resnet50(self) -> None:
        check(settled(dk.models.resnet50(num_classes=11, width=0.5), (3, 48, 48)), (3, 48, 48))

    def test_mobilenetv2(self) -> None:
        check(settled(dk.models.mobilenetv2(num_classes=13, width=0.5), (3, 64, 48)), (3, 64, 48))

    def test_slim_mobilenetv2(self) -> None:
        run = check(slim_net(dk.models.mobilenetv2(num_classes=13), (3, 32, 32)), (3, 32, 32), (2,))
        assert run.subnets == WIDTHS

    def test_mobile(self) -> None:
        check(settled(MobileNet(), (3, 40, 28)), (3, 40, 28))

    def test_dense(self) -> None:
        check(settled(DenseNet(), (3, 36, 32)), (3, 36, 32))

    def test_slim_at_every_width(self) -> None:
        run = check(slim_net(dk.models.resnet20(), (3, 32, 32)), (3, 32, 32))
        assert run.subnets == WIDTHS

    @pytest.mark.parametrize("name", ["residual", "dense", "se", "mlp", "tied"])
    def test_non_uniform(self, name: str) -> None:
        build, (_, *shape) = SAMPLES[name]
        net = dk.slim(settled(build(), tuple(shape)), (0.5, NON_UNIFORM[name], 1.0))
        dk.calibrate_bn(net, [torch.randn(16, *shape)])
        check(net.eval(), tuple(shape))

    def test_packed(self) -> None:
        net = dk.ternarize(settled(dk.models.resnet_binary(inflate=1), (3, 32, 32)), delta=0.02)
        check(dk.pack(settled(net, (3, 32, 32))), (3, 32, 32))

    def test_slim_and_packed(self) -> None:
        net = dk.ternarize(small_slim(), 0.05)
        dk.calibrate_bn(net, [torch.randn(16, *SMALL)], subnets=WIDTHS)
        check(dk.pack(net), SMALL)

    def test_features(self) -> None:
        check(settled(nn.Sequential(nn.Linear(9, 17), nn.BatchNorm1d(17), nn.GELU(), nn.Linear(17, 5)), (9,)), (9,))


@pytest.mark.shared_data
def test_the_trained_network_on_real_images(shared_data: Path) -> None:
    (file,) = (shared_data / "data" / "resnet_cifar10").glob("resnet20-*.th")
    net = dk.load_checkpoint(dk.models.resnet20(), file).eval()
    images, labels = load_cifar10(shared_data / "data" / "cifar10", limit=500)
    x = normalize(images)
    y, right = dk.compile(net, x)(x), exact(net, x)
    assert_close(y, right, net)
    assert torch.equal(y.argmax(1), right.argmax(1))
    assert (y.argmax(1) == labels).float().mean() > 0.75


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str) -> None:
    net = Function(OPERATORS[name][0])
    check(net, SHAPE)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 17), (8, 33)])
def test_the_native_engine_does_what_the_reference_does(size: tuple[int, int], batch: int) -> None:
    net = settled(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.SiLU()), (3, 8, 8))
    result = lower(capture(net, (3, *size), torch.float32), tensors_of(net))
    x = torch.randn(batch, 3, *size)
    y = dk.compile(net, x)(x)
    assert_close(y, reference.run(result.plan, result.weights, x.double()), net)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return settled(dk.models.resnet20(), (3, 16, 16))


@pytest.fixture(scope="module")
def run(net: nn.Module) -> Compiled:
    return dk.compile(net, torch.randn(2, 3, 16, 16))


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    torch.manual_seed(0)
    return small_slim()


@pytest.fixture(scope="module")
def slim_run(slim: nn.Module) -> Compiled:
    return dk.compile(slim, torch.randn(1, *SMALL))


class TestInput:
    @pytest.mark.parametrize("batch", [0, 1, 2, 7])
    def test_any_batch(self, net: nn.Module, run: Compiled, batch: int) -> None:
        x = torch.randn(batch, 3, 16, 16)
        y = run(x)
        assert y.shape == (batch, 10)
        if batch:
            assert_close(y, exact(net, x), net)

    def test_any_strides(self, net: nn.Module, run: Compiled) -> None:
        for x in (
            torch.randn(3, 3, 16, 16).to(memory_format=torch.channels_last),
            torch.randn(2, 6, 20, 36)[:, 1::2, 4:, 2:34:2],
            torch.randn(2, 3, 16, 16).transpose(2, 3),
            torch.randn(1, 3, 16, 1).expand(4, 3, 16, 16),
            torch.randn(16, 16, 3, 2).permute(3, 2, 1, 0),
        ):
            before = x.clone()
            assert_close(run(x), exact(net, x), net)
            assert torch.equal(x, before)

    def test_a_parameter_or_needless_gradient(self, run: Compiled) -> None:
        x = nn.Parameter(torch.randn(1, 3, 16, 16))
        with torch.no_grad():
            y = run(x)
        assert not y.requires_grad
        assert torch.equal(run(x.detach()), y)
        with torch.inference_mode():
            assert torch.equal(run(torch.ones(1, 3, 16, 16)), run(torch.ones(1, 3, 16, 16)))

    def test_results_are_new_tensors(self, run: Compiled) -> None:
        x = torch.randn(2, 3, 16, 16)
        y = run(x)
        kept = y.clone()
        z = run(x + 1)
        assert y.data_ptr() != z.data_ptr()
        assert torch.equal(y, kept)
        for function in (lambda x: x.clone(), lambda x: x.flatten(1)):
            y = dk.compile(Function(function), x)(x)
            assert y.data_ptr() != x.data_ptr()
            assert torch.equal(y, function(x))

    def test_a_new_size_is_planned_once(self, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[tuple[int, ...]] = []

        def counted(net: nn.Module, shape: tuple[int, ...], *args: object) -> object:
            sizes.append(tuple(shape))
            return capture(net, shape, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(compiled, "capture", counted)
        run = dk.compile(net, torch.randn(1, 3, 16, 16))
        for size in ((16, 16), (24, 12), (16, 16), (24, 12)):
            for batch in (1, 2):
                x = torch.randn(batch, 3, *size)
                assert_close(run(x), exact(net, x), net)
        assert sizes == [(3, 16, 16), (3, 24, 12)]


class TestSubnets:
    def test_default_is_the_widest_or_the_selected(self, slim: nn.Module) -> None:
        x = torch.randn(2, *SMALL)
        run = dk.compile(slim, x)
        assert torch.equal(run(x), run(x, subnet=1.0))
        run.select(0.5)
        assert torch.equal(run(x), run(x, subnet=0.5))
        # What the network itself has selected is its own matter.
        with dk.using(slim, 0.25):
            assert torch.equal(run(x), run(x, 0.5))
        assert dk.subnets.active(slim) == 1.0

    @pytest.mark.parametrize(
        ("subnets", "first"),
        [((1.0, 0.5), 1.0), ((0.5, 0.25), 0.5), ((dk.SubNet("a", {"0": 1}), dk.SubNet("b", {"0": 2})), "b")],
    )
    def test_the_widest_need_not_be_the_last(self, subnets: tuple, first: float | str) -> None:
        net = dk.slim(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), subnets)
        x = torch.randn(1, 2, 3, 3)
        run = dk.compile(net, x)
        assert torch.equal(run(x), run(x, first))
        assert run.describe().subnet == first

    def test_an_integer_names_the_same(self, slim_run: Compiled) -> None:
        x = torch.randn(1, *SMALL)
        assert torch.equal(slim_run(x, subnet=1), slim_run(x, subnet=1.0))

    def test_memory(self) -> None:
        net = slim_net(dk.models.resnet20(), (3, 32, 32))
        run = dk.compile(net, torch.randn(1, 3, 32, 32))
        full = sum(p.nbytes for name, p in net.named_parameters() if ".bn." not in name)
        assert full <= run.nbytes <= 1.15 * full

    def test_packed_weights_stay_small(self) -> None:
        net = dk.pack(dk.ternarize(settled(dk.models.resnet_binary(inflate=2), (3, 32, 32)), 0.02))
        dense = sum(m.weight.signs().numel() * 4 for m in net.modules() if isinstance(m, dk.nn.PackedTernaryConv2d))
        assert dk.compile(net, torch.randn(1, 3, 32, 32)).nbytes < dense

    def test_describe(self, slim_run: Compiled) -> None:
        whole, narrow = slim_run.describe(), slim_run.describe(0.25)
        assert whole.subnet == 1.0
        assert narrow.subnet == 0.25
        assert len(whole.steps) == len(narrow.steps) == 9
        assert whole.steps[-1]["shape"] == (5, 1, 1)
        assert whole.weight_bytes == narrow.weight_bytes
        assert whole.arena_bytes > narrow.arena_bytes
        text = str(narrow)
        assert "sub-net 0.25" in text
        assert len(text.splitlines()) == 11
        assert "Residual" in repr(slim_run)


class TestRefresh:
    def test_weights_are_copies_until_then(self) -> None:
        net = small_slim()
        x = torch.randn(2, *SMALL)
        run = dk.compile(net, x)
        before = {key: run(x, key) for key in WIDTHS}
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(1.25)
        net.head.bias = nn.Parameter(torch.randn(5))
        for key in WIDTHS:
            assert torch.equal(run(x, key), before[key])
        run.refresh()
        for key in WIDTHS:
            assert not torch.equal(run(x, key), before[key])
            assert_close(run(x, key), subnet_exact(net, x, key), net)

    def test_a_new_size_agrees_with_the_weights_taken_in(self) -> None:
        net = settled(dk.models.resnet20(), (3, 16, 16))
        run = dk.compile(net, torch.randn(1, 3, 16, 16))
        small, large = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 20, 20)
        old = copy.deepcopy(net)
        net.load_state_dict(settled(dk.models.resnet20(), (3, 16, 16)).state_dict())
        for x in (small, large):
            assert_close(run(x), exact(old, x), net)
        run.refresh()
        for x in (small, large):
            assert_close(run(x), exact(net, x), net)

    def test_a_training_network(self) -> None:
        net = small_slim().train()
        x = torch.randn(4, *SMALL)
        run = dk.compile(net, x)
        assert net.training
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        F.cross_entropy(net(x), torch.arange(4)).backward()
        optimizer.step()
        run.refresh()
        assert_close(run(x), subnet_exact(copy.deepcopy(net).eval(), x, 1.0), net)

    def test_packed_again(self) -> None:
        net = dk.ternarize(settled(dk.models.resnet20(), (3, 16, 16)), 0.05)
        packed = dk.pack(net)
        x = torch.randn(1, 3, 16, 16)
        run = dk.compile(packed, x)
        packed.load_state_dict(dk.pack(dk.ternarize(net, 0.1)).state_dict())
        run.refresh()
        assert_close(run(x), exact(packed, x), packed)

    def test_a_refresh_that_fails_changes_nothing(self) -> None:
        net = settled(dk.models.resnet20(), (3, 16, 16))
        x = torch.randn(1, 3, 16, 16)
        run = dk.compile(net, x)
        y = run(x)
        net.linear.weight = nn.Parameter(torch.randn(10, 63))
        with pytest.raises(ValueError, match=r"linear\.weight.*\(10, 64\).*compile it again"):
            run.refresh()
        assert torch.equal(run(x), y)


class TestThreads:
    @pytest.fixture(autouse=True)
    def _threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_number_of_threads(self, slim: nn.Module, batch: int) -> None:
        x = torch.randn(batch, *SMALL)
        one, two, torchs = (dk.compile(slim, x, threads=threads) for threads in (1, 2, None))
        assert (one.threads, two.threads, torchs.threads) == (1, 2, None)
        torch.set_num_threads(2)
        for key in WIDTHS:
            right = subnet_exact(slim, x, key)
            for run in (one, two, torchs):
                assert_close(run(x, key), right, slim)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_several_threads_with_several_subnets(self, slim: nn.Module, threads: int) -> None:
        xs = {key: torch.randn(i + 1, *SMALL) for i, key in enumerate(WIDTHS)}
        run = dk.compile(slim, xs[1.0], threads=threads)
        right = {key: run(x, key) for key, x in xs.items()}
        wrong: list[object] = []
        start = threading.Barrier(len(WIDTHS))

        def work(key: float) -> None:
            try:
                start.wait()
                for _ in range(20):
                    assert torch.equal(run(xs[key], key), right[key])
            except BaseException as error:
                wrong.append(error)

        together([lambda key=key: work(key) for key in WIDTHS])  # type: ignore[misc]
        assert not wrong

    def test_new_sizes_and_refreshes_meanwhile(self) -> None:
        net = settled(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()), (3, 6, 6))
        run = dk.compile(net, torch.randn(1, 3, 6, 6))
        xs = [torch.randn(1, 3, size, size) for size in (5, 6, 7)]
        right = [exact(net, x) for x in xs]
        wrong: list[object] = []

        def work() -> None:
            try:
                for _ in range(5):
                    run.refresh()
                    for x, y in zip(xs, right, strict=True):
                        assert_close(run(x), y, net)
            except BaseException as error:
                wrong.append(error)

        together([work] * 4)
        assert not wrong


def together(works: list) -> None:
    """Run functions in threads, and wait for all."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_program_runs_under_another_instruction_set() -> None:
    """Blocks and cuts of the lists made under one instruction set are right under every other."""
    before = _C.isa()
    torch.manual_seed(0)
    layer = nn.Conv2d(96, 96, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape))
    net = dk.pack(dk.ternarize(nn.Sequential(layer), delta=0.5))
    x = torch.randn(1, 96, 16, 16)
    try:
        for made in _C.isas():
            _C.force_isa(made)
            run = dk.compile(net, x, threads=1)
            for used in _C.isas():
                _C.force_isa(used)
                torch.testing.assert_close(run(x), net(x), rtol=1e-4, atol=1e-3)
    finally:
        _C.force_isa(before)
