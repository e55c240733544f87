"""The training loop: what it computes, that it continues where it was broken off, and what it tells."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynkern as dk
from dynkern.data import Augment, Images, Stream, normalize
from dynkern.train import Hooks, Lines, Outcome, Recipe, accuracy, classify, constant, fit, one_cycle, steps

FAST = Recipe(epochs=2, lr=0.05, precision="float32", channels_last=False)


def images(n: int = 24, classes: int = 3, size: int = 8, seed: int = 0) -> Images:
    """Noise, with the class in the brightness."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    noise = torch.randint(0, 60, (n, 3, size, size), generator=g)
    return Images((noise + labels.view(-1, 1, 1, 1) * 80).to(torch.uint8), labels, classes)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("slim", [False, True])
def test_a_run_that_is_continued_ends_like_one_that_was_not(tmp_path: Path, precision: str, slim: bool) -> None:
    recipe = Recipe(epochs=3, lr=0.05, precision=precision, seed=4)
    data = Stream(images(), batch=8, augment=Augment(pad=1), seed=2)
    step = dk.train.fused() if slim else classify

    def fresh() -> nn.Module:
        return dk.slim(network(), (0.5, 1.0)) if slim else network()

    whole = fresh()
    expected = fit(whole, data, recipe, step=step)

    class Stop(Exception):
        pass

    def stop(epoch: int) -> None:
        if epoch == 3:
            raise Stop

    torch.manual_seed(99)  # the random numbers of the caller do not matter
    with pytest.raises(Stop):
        fit(fresh(), data, recipe, step=step, hooks=Hooks(before_epoch=stop), checkpoint=tmp_path / "run.pt")
    torch.manual_seed(7)
    continued = fresh()
    seen: list[int] = []
    history = fit(
        continued, data, recipe, step=step, hooks=Hooks(before_epoch=seen.append), checkpoint=tmp_path / "run.pt"
    )
    assert seen == [3]
    assert same(weights(whole), weights(continued))
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    # Once finished, it is only loaded.
    again = fresh()
    assert len(fit(again, data, recipe, step=step, checkpoint=tmp_path / "run.pt")) == 3
    assert same(weights(whole), weights(again))


def test_the_seed_decides() -> None:
    results = []
    for seed in (0, 0, 1):
        net = network()
        fit(net, Stream(images(), batch=8, seed=seed), Recipe(**{**FAST.to_dict(), "seed": seed}))
        results.append(weights(net))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(network(), Stream(images(), batch=8), FAST)  # draws for the network come first
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)
    state = torch.get_rng_state()
    net = network()
    after_building = torch.get_rng_state()
    fit(net, Stream(images(), batch=8), FAST)
    assert torch.equal(torch.get_rng_state(), after_building)
    assert state.shape == after_building.shape


def test_one_step_is_that_of_the_optimiser() -> None:
    """Against the same arithmetic written out: SGD with Nesterov's momentum, weight decay of matrices alone."""
    data = Stream(images(8), batch=8, augment=None)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    expected = copy.deepcopy(net)
    fit(net, data, Recipe(epochs=1, lr=0.1, schedule="constant", precision="float32", weight_decay=0.01))
    ((x, y),) = data.epoch(1)
    F.cross_entropy(expected(x), y).backward()
    linear = expected[1]
    with torch.no_grad():
        for p, decay in ((linear.weight, 0.01), (linear.bias, 0.0)):
            grad = p.grad + decay * p
            p -= 0.1 * (grad + 0.9 * grad)
    torch.testing.assert_close(net[1].weight, linear.weight)
    torch.testing.assert_close(net[1].bias, linear.bias)


def test_it_learns() -> None:
    net, data = network(), images(96)
    history = fit(net, Stream(data, batch=16, augment=None), Recipe(epochs=12, lr=0.1, precision="float32"))
    assert history[-1]["train_accuracy"] > 0.9
    assert accuracy(net.eval(), images(30, seed=1)) > 0.9
    assert [r["epoch"] for r in history] == list(range(1, 13))


def test_hooks_and_parts(tmp_path: Path) -> None:
    class Counter:
        value = 0

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    counter, calls = Counter(), []

    def after_step() -> None:
        counter.value += 1

    hooks = Hooks(lambda e: calls.append(e), after_step, lambda e: {"test_accuracy": e / 10})
    path = tmp_path / "run.pt"
    history = fit(network(), Stream(images(), batch=8), FAST, hooks=hooks, checkpoint=path, parts={"counter": counter})
    assert calls == [1, 2]
    assert counter.value == 6
    assert [r["test_accuracy"] for r in history] == [0.1, 0.2]
    other = Counter()
    fit(network(), Stream(images(), batch=8), FAST, checkpoint=path, parts={"counter": other})
    assert other.value == 6
    with pytest.raises(ValueError, match="expected the state of"):
        fit(network(), Stream(images(), batch=8), FAST, checkpoint=path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    fit(network(), Stream(images(), batch=8), FAST, checkpoint=path)
    with pytest.raises(ValueError, match=r"another recipe \(epochs 2, now 5; lr 0.05, now 0.1\)"):
        fit(
            network(),
            Stream(images(), batch=8),
            Recipe(5, 0.1, precision="float32", channels_last=False),
            checkpoint=path,
        )
    with pytest.raises(ValueError, match="batch 8, now 12"):
        fit(network(), Stream(images(), batch=12), FAST, checkpoint=path)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match="the state of net does not fit"):
        fit(wider, Stream(images(), batch=8), FAST, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as the state of a run"):
        fit(network(), Stream(images(), batch=8), FAST, checkpoint=path)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": network().state_dict()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="expected the state of a run"):
        fit(network(), Stream(images(), batch=8), FAST, checkpoint=tmp_path / "run.pt")


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    real, saved = torch.save, []

    def broken(content: Any, file: Any) -> None:
        real(content, file)
        saved.append(file)
        if len(saved) == 2:
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space"):
        fit(network(), Stream(images(), batch=8), FAST, checkpoint=path)
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    seen: list[int] = []
    fit(network(), Stream(images(), batch=8), FAST, hooks=Hooks(before_epoch=seen.append), checkpoint=path)
    assert seen == [2]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    def step(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        loss = net(x).sum() * float("nan")
        loss.backward()
        return Outcome(loss.detach(), torch.tensor(0))

    with pytest.raises(RuntimeError, match="not finite in epoch 1, step 1"):
        fit(network(), Stream(images(), batch=8), FAST, step=step)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "learning rate above 0"),
        ({"lr": float("nan")}, "learning rate above 0"),
        ({"schedule": "slow"}, "schedule"),
        ({"schedule": {3: 0.1}}, "epoch 0"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"precision": "int4"}, "precision"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_bad_recipes(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Recipe(**change)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="require a gradient"):
        fit(network().requires_grad_(False), Stream(images(), batch=8), FAST)


def test_schedules() -> None:
    rate = one_cycle(1.0, 10, warmup=0.2, first=0.1)
    assert [rate(0), rate(1), rate(2), rate(6), rate(10)] == pytest.approx([0.1, 0.55, 1, 0.5, 0])
    rate = steps({0: 0.1, 5: 0.01, 8: 0.001})
    assert [rate(0), rate(4.9), rate(5), rate(9)] == [0.1, 0.1, 0.01, 0.001]
    assert constant(0.3)(7) == 0.3


def test_lines_tell_how_it_goes() -> None:
    out = io.StringIO()
    fit(network(), Stream(images(), batch=8), FAST, progress=Lines("small", out, every_s=0))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 * 3 + 2
    assert lines[0].startswith("small: epoch 1/2 step 1/3  loss ")
    assert "left 0:00" in lines[-1]
    assert "train_accuracy" in lines[-1]


def test_accuracy_counts() -> None:
    data = images(9)
    assert accuracy(lambda x: F.one_hot(torch.zeros(len(x), dtype=torch.int64), 3).float(), data) == pytest.approx(
        1 / 3
    )
    brightness = normalize(data.images).mean((1, 2, 3))
    assert bool((brightness[2::3] > brightness[1::3].max()).all())


def test_modules_train_as_torchs_own_do() -> None:
    """Where gradients are recorded the sliced layers keep autocast's dtype and channels_last, and give the same."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten()]
    plain = nn.Sequential(*layers, nn.Linear(8 * 16, 4))
    slim = dk.slim(copy.deepcopy(plain), (0.5, 1.0))
    x = torch.randn(5, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    results = []
    for net in (plain, slim):
        with torch.autocast("cpu", torch.bfloat16):
            first = net[0](x)
            assert first.dtype == torch.bfloat16
            assert first.is_contiguous(memory_format=torch.channels_last)
            net(x).float().square().sum().backward()
        results.append([p.grad for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
