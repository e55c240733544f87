"""Networks with operators that the engine does not have: torch runs those, the engine the rest."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
import torch.nn.functional as F
from engine_models import SHAPE, WIDTHS, Function, assert_close, exact, settled, slim_net, subnet_exact
from test_engine_errors import UNSUPPORTED
from torch import Tensor, nn

import dynkern as dk
from dynkern.engine import reference, torch_node
from dynkern.engine.backend import dynkern as backend
from dynkern.engine.builder import LoweringError
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.lower import lower

RANDOM = ("random", "dropout in training")


class Around(nn.Module):
    """Two branches from one convolution, of which one has an odd operator; joined, and another one at the end."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.left = nn.Conv2d(channels, channels, 3, padding=1)
        self.right = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.relu(F.softplus(self.left(x)) + self.right(x) + x)
        return F.softplus(self.head(y.mean((2, 3))))


@pytest.mark.parametrize("name", sorted(UNSUPPORTED.keys() - {"other precision"}))
def test_operators(name: str) -> None:
    function, _, _ = UNSUPPORTED[name]
    net = nn.Sequential(
        nn.Conv2d(SHAPE[0], SHAPE[0], 3, padding=1), nn.ReLU(), Function(function), nn.Flatten(1)
    ).eval()
    run = dk.compile(net, torch.randn(2, *SHAPE), fallback=True)
    for batch in (2, 1, 5):
        x = torch.randn(batch, *SHAPE)
        with torch.no_grad():
            y, expected = run(x), net(x)
        assert (y.shape, y.dtype) == (expected.shape, torch.float32)
        if name not in RANDOM:
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_what_torch_cannot_run_alone_stays_an_error() -> None:
    with pytest.raises(LoweringError, match="wrap_with_autocast"):
        dk.compile(Function(UNSUPPORTED["other precision"][0]), torch.randn(2, *SHAPE), fallback=True)


def test_as_few_programs_as_possible() -> None:
    net = settled(Around(), (3, 9, 8))
    run = dk.compile(net, torch.randn(1, 3, 9, 8), fallback=True)
    x = torch.randn(3, 3, 9, 8)
    assert_close(run(x), exact(net, x), net)
    description = run.describe()
    turns = ["torch" if row["step"].startswith("torch: ") else "native" for row in description.steps]
    # The convolutions of both branches come first, although one of them is only used after the odd operator.
    assert [turn for i, turn in enumerate(turns) if i == 0 or turns[i - 1] != turn] == ["native", "torch"] * 2
    assert "torch: aten.softplus in the network itself (Around)" in str(description)
    written = {0, *(row["writes"] for row in description.steps)}
    assert all(v in written for row in description.steps for v in row["reads"])


def test_the_reference_runs_it_too() -> None:
    net = settled(Around(), (3, 9, 8))
    lowered = lower(capture(net, (3, 9, 8), torch.float32), tensors_of(net), fallback=True)
    x = torch.randn(3, 3, 9, 8)
    assert_close(reference.run(lowered.plan, lowered.weights, x), exact(net, x), net)


def test_slim_in_threads() -> None:
    net = slim_net(Around(), (3, 9, 8))
    run = dk.compile(net, torch.randn(1, 3, 9, 8), threads=2, fallback=True)
    xs = {key: torch.randn(i + 1, 3, 9, 8) for i, key in enumerate(WIDTHS)}
    right = {key: subnet_exact(net, x, key) for key, x in xs.items()}
    failed: list[BaseException] = []

    def work(key: float) -> None:
        try:
            for _ in range(20):
                assert_close(run(xs[key], key), right[key], net)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(key,)) for key in WIDTHS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_refresh_and_new_sizes() -> None:
    net = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2), nn.PReLU(4)), (3, 6, 6))
    x, larger = torch.randn(2, 3, 6, 6), torch.randn(1, 3, 7, 9)
    run = dk.compile(net, x, fallback=True)
    before = exact(net, x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    assert_close(run(x), before, net)
    run.refresh()
    assert_close(run(x), exact(net, x), net)
    assert_close(run(larger), exact(net, larger), net)
    assert run.nbytes >= sum(p.nbytes for p in net.parameters())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x.transpose(0, 1).transpose(0, 1)[:, ::2],
        lambda x: F.adaptive_avg_pool2d(x, (4, 5)).exp_(),
        lambda x: x.exp().permute(0, 2, 1, 3),
    ],
)
def test_results_are_new_and_arguments_left_alone(function) -> None:
    net, x = Function(function), torch.randn(2, 3, 4, 5)
    run, copy = dk.compile(net, x, fallback=True), x.clone()
    y = run(x)
    assert torch.equal(x, copy)
    assert_close(y, exact(net, x), net)
    y.zero_()
    assert torch.equal(x, copy)
    assert_close(run(x), exact(net, x), net)


def test_results_of_any_shape() -> None:
    net, x = Function(lambda x: x.exp().flatten(2).transpose(1, 2)), torch.randn(2, 3, 4, 5)
    assert_close(dk.compile(net, x, fallback=True)(x), exact(net, x), net)


def test_empty_batch_and_wrong_input() -> None:
    run = dk.compile(settled(Around(), (3, 9, 8)), torch.randn(1, 3, 9, 8), fallback=True)
    assert run(torch.randn(0, 3, 9, 8)).shape == (0, 5)
    with pytest.raises(ValueError, match="x: expected shape"):
        run(torch.randn(1, 4, 9, 8))
    with pytest.raises(TypeError, match=r"x: expected torch\.float32"):
        run(torch.randn(1, 3, 9, 8).double())


def test_it_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    torch_node.announce.cache_clear()
    with caplog.at_level(logging.WARNING, "dynkern"):
        for _ in range(2):
            dk.compile(Around(), torch.randn(1, 3, 9, 8), fallback=True)
    lines = [r.getMessage() for r in caplog.records if r.name == "dynkern" and r.getMessage().startswith("engine")]
    assert len(lines) == len(set(lines)) == 1
    assert any("cannot lower aten.softplus in the network itself (Around)" in line for line in lines)


def test_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_node.announce.cache_clear()
    monkeypatch.setenv("DYNKERN_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"cannot lower aten\.softplus in .*, and DYNKERN_STRICT is set"):
        dk.compile(Around(), torch.randn(1, 3, 9, 8), fallback=True)
    torch_node.announce.cache_clear()


def test_without_it_the_operator_is_an_error() -> None:
    with pytest.raises(LoweringError, match=r"aten\.softplus in the network itself \(Around\)"):
        dk.compile(Around(), torch.randn(1, 3, 9, 8))


def test_torch_compile() -> None:
    net = settled(Around(), (3, 9, 8))
    torch._dynamo.reset()
    run = torch.compile(net, backend=backend, options={"fallback": True})
    with torch.no_grad():
        for batch in (2, 3, 4):
            x = torch.randn(batch, 3, 9, 8)
            assert_close(run(x), exact(net, x), net)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="expected the option 'fallback' or none"), torch.no_grad():
        torch.compile(net, backend=backend, options={"fast": True})(x)
    torch._dynamo.reset()
