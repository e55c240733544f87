"""The benchmark: timing on made-up clocks, the cases, their baselines, and checks before times."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dynkern import models, subnets
from dynkern.bench import peers, real
from dynkern.bench.cases import SPARSITY_SUITE, WIDTH_SUITE, Point, TernaryCase, WidthCase, plan
from dynkern.bench.run import MOST, Budget, measure, run
from dynkern.bench.stages import Task, TernaryStage, WidthStage
from dynkern.bench.timer import Measurement, interleave, threads

POINT = Point(TernaryCase("conv 8 to 8, 4x4", 8, 8, 4, values=(0.5,)), 0.5, 1, 1)


class World:
    """A clock, and variants that take known times on it and note that they ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.log.append("sleep")
        self.now += seconds

    def variant(self, name: str, *seconds: float) -> Callable[[], None]:
        """Takes ``seconds`` one after the other, then the last again and again."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_every_round_has_one_sample_of_each_and_starts_with_another_variant() -> None:
    world = World()
    variants = {name: world.variant(name, 1.0) for name in "abc"}
    interleave(variants, budget_s=0, sample_s=1, rounds=(4, 9), clock=world.clock)
    # Two calls each to warm up and to count, then rounds of single calls.
    assert "".join(world.log) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_short_calls_are_repeated_after_an_untimed_one() -> None:
    world = World()
    found = interleave(
        {"a": world.variant("a", 9, 0.25, 5, 0.25)}, budget_s=0, sample_s=1, rounds=(1, 1), clock=world.clock
    )
    # The first call (9 s) is no guide to the count, and the one before the sample (5 s) is no part of it.
    assert len(world.log) == 2 + 1 + 4
    assert found.calls["a"] == 4
    assert list(found.samples["a"]) == [0.25]


def test_rounds_fill_the_budget_within_their_bounds() -> None:
    def rounds(budget_s: float) -> int:
        world = World()
        timing = interleave(
            {"a": world.variant("a", 1)}, budget_s=budget_s, sample_s=1, rounds=(3, 20), clock=world.clock
        )
        return len(timing.samples["a"])

    assert [rounds(0), rounds(7), rounds(1000)] == [3, 7, 20]


def test_settling_comes_before_each_sample_and_is_not_timed() -> None:
    world = World()
    variants = {name: world.variant(name, 1) for name in "ab"}
    timing = interleave(
        variants, budget_s=0, sample_s=1, settle_s=8, rounds=(1, 1), clock=world.clock, sleep=world.sleep
    )
    assert world.log[4:] == ["sleep", "a", "sleep", "b"]
    assert list(timing.samples["a"]) == [1]


def test_speedup_is_the_median_of_the_ratios_of_rounds() -> None:
    # A machine that slows down tenfold in the middle: the ratio of the medians (2 / 10) would be far off.
    timing = Measurement({"ours": [1, 10, 10], "theirs": [2, 2, 20]}, {"ours": 1, "theirs": 1})
    assert timing.speedup("ours", "theirs") == 2
    assert timing.speedup("theirs", "ours") == 0.5
    assert timing.quantile("ours", 0.5) == 10
    assert Measurement({"a": [0, 1, 2, 3, 4, 5]}, {"a": 1}).quantile("a", 0.2) == 1


def test_garbage_is_not_collected_within_samples_and_is_afterwards() -> None:
    states: list[bool] = []
    interleave({"a": lambda: states.append(gc.isenabled())}, budget_s=0, sample_s=1e-9, rounds=(1, 1))
    assert states[-1] is False
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"variants": {}}, "variants"),
        ({"rounds": (0, 3)}, "rounds"),
        ({"rounds": (4, 3)}, "rounds"),
        ({"budget_s": math.nan}, "budget_s"),
        ({"sample_s": 0}, "sample_s"),
        ({"settle_s": -1}, "settle_s"),
    ],
)
def test_timer_refuses(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        interleave(**{"variants": {"a": int}, "budget_s": 1, **change})


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    seen = []
    with contextlib.suppress(RuntimeError), threads(before + 1):
        seen.append(torch.get_num_threads())
        raise RuntimeError
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_budget_is_shared_among_the_points_left() -> None:
    world = World()
    budget = Budget(2.0, 10, world.clock)
    assert budget.share() == pytest.approx(0.2)
    world.now = 1.1
    assert budget.share() == pytest.approx(0.9 / 9)
    world.now = 5.0
    assert budget.share() == 0
    assert Budget(1000.0, 1, world.clock).share() == MOST


def test_plan_covers_the_suites_and_keeps_cases_together() -> None:
    points = plan("all", False, [1, 2])
    assert (
        len(set(points)) == len(points) == sum(len(c.values) * len(c.batches) * 2 for c in WIDTH_SUITE + SPARSITY_SUITE)
    )
    order = list(dict.fromkeys(point.case for point in points))
    assert [point.case for point in points] == sorted((p.case for p in points), key=order.index)
    assert {p.batch for p in plan("width", False, [1], [3, 5])} == {3, 5}
    assert all(1 in case.batches and max(case.batches) > 1 for case in WIDTH_SUITE + SPARSITY_SUITE)
    with pytest.raises(ValueError, match="suite"):
        plan("depth", False, [1])


def test_peers_are_chosen_by_name_and_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = peers.importlib.util.find_spec
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    auto = peers.choose("auto")
    assert "pip install 'dynkern[peers]'" in auto.absent["openvino"]
    assert not auto.everywhere
    named = peers.choose("torch.compile, openvino")
    assert [peer.variant for peer in named.wanted] == ["torch_compile"]
    assert named.everywhere
    assert set(named.absent) == {"openvino", "onnxruntime"}
    assert len(peers.choose("none").absent) == len(peers.OPTIONAL)
    with pytest.raises(ValueError, match="tensorrt"):
        peers.choose("tensorrt")


def test_sliced_twin_slices_the_full_weight_in_each_call() -> None:
    net = subnets.slim(models.resnet20(), subnets=(0.25, 1.0))
    subnets.calibrate_bn(net, [torch.randn(4, 3, 32, 32)])
    net.eval()
    plain = subnets.extract(net, 0.25)
    twin = peers.sliced_twin(net, plain)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twin(x), plain(x))
        before = twin(x)
        net.get_submodule("conv1").weight.mul_(2)
        assert not torch.equal(twin(x), before)
    layers = [name for name, m in plain.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 20
    assert all(twin.get_submodule(name).weight is net.get_submodule(name).weight for name in layers)
    assert not any(isinstance(m, (peers.SliceConv2d, peers.SliceLinear)) for m in plain.modules())


def made_task(**variants: Callable[[], torch.Tensor]) -> Task:
    """Right is 1."""

    def error(y: torch.Tensor) -> float:
        return float((y - 1).abs().max())

    return Task({name: lambda call=call: call for name, call in variants.items()}, error, 1e-6, 10, 20)


def test_a_wrong_output_gets_no_time() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no such layout\nand a long story")

    task = made_task(
        dynkern=lambda: torch.ones(3),
        torch_dense=lambda: torch.full((3,), 1.1),
        openvino=lambda: torch.full((3,), torch.nan),
        onnxruntime=broken,
    )
    rows = {row.variant: row for row in run(POINT, task, lambda: 0.0)}
    assert list(rows) == ["dynkern", "torch_dense", "openvino", "onnxruntime"]
    assert [row.status for row in rows.values()] == ["ok", "wrong", "wrong", "failed"]
    assert [row.median_s is None for row in rows.values()] == [False, True, True, True]
    assert rows["torch_dense"].error == pytest.approx(0.1, rel=1e-3)
    assert rows["openvino"].error is None
    assert rows["onnxruntime"].reason == "RuntimeError: no such layout"
    assert rows["dynkern"].speedup == {}


def test_our_own_wrong_output_gets_no_time_and_our_own_failure_is_raised() -> None:
    rows = run(POINT, made_task(dynkern=lambda: torch.zeros(1), torch_dense=lambda: torch.ones(1)), lambda: 0.0)
    assert (rows[0].status, rows[0].median_s) == ("wrong", None)
    with pytest.raises(ZeroDivisionError):
        run(POINT, made_task(dynkern=lambda: torch.ones(1 // 0)), lambda: 0.0)


def test_percentiles_and_speedups_reach_the_rows() -> None:
    a, b = run(POINT, made_task(dynkern=lambda: torch.ones(1), torch_dense=lambda: torch.ones(1)), lambda: 0.0)
    assert 0 < a.p20_s <= a.median_s <= a.p80_s
    assert (a.suite, a.case, a.value, a.macs, a.dense_macs) == ("sparsity", POINT.case.name, 0.5, 10, 20)
    assert (set(a.speedup), set(b.speedup)) == ({"torch_dense"}, {"dynkern"})
    assert a.rounds >= 3


@pytest.mark.parametrize("size", [None, 6])
def test_ternary_stage_has_the_zeros_it_says_and_right_variants(size: int | None) -> None:
    case = TernaryCase("small", 12, 10, size, values=(0.0, 0.75, 1.0), dense_peers=())
    stage = TernaryStage(case, peers.none(""))
    for zeros in case.values:
        task = stage.task(Point(case, zeros, 3, 1))
        pixels = 1 if size is None else size**2
        weights = 12 * 10 * (1 if size is None else 9)
        assert task.dense_macs == 3 * pixels * weights
        assert task.macs == round(task.dense_macs * (1 - zeros))
        expected = {"dynkern", "torch_dense"} | ({"torch_sparse"} if size is None else set())
        assert set(task.variants) == expected
        for build in task.variants.values():
            assert task.error(build()()) <= task.tolerance


def test_error_of_a_ternary_layer_sees_one_wrong_weight() -> None:
    case = TernaryCase("small", 64, 8, None)
    stage = TernaryStage(case, peers.none(""))
    task = stage.task(Point(case, 0.9, 4, 1))
    wrong = stage.signs(0.9).float()
    wrong[3, 5] += 1
    assert task.error(stage.inputs(4) @ wrong.t()) > 100 * task.tolerance


def test_width_stage_runs_every_width_right() -> None:
    case = WidthCase("ResNet-20", "resnet20", values=(0.25, 1.0), compiled=(1.0,))
    stage = WidthStage(case, peers.Choice((peers.OPTIONAL["torch.compile"],), False, {}))
    macs = {}
    for width in (1.0, 0.25, 1.0):
        task = stage.task(Point(case, width, 2, 1))
        macs[width] = task.macs
        ran = set(task.variants) - {"torch_compile"}
        assert ran == {"dynkern", "eager_sliced", "eager_extracted"}
        # Only where it is worth its compile time: one image, one thread, at the widths that the case names.
        assert "torch_compile" not in task.variants
        assert ("torch_compile" in stage.task(Point(case, width, 1, 1)).variants) == (width == 1.0)
        with torch.no_grad():
            assert all(task.error(task.variants[name]()()) <= task.tolerance for name in ran)
    assert macs == {1.0: 2 * 40_551_040, 0.25: 2 * 2_617_504}


def test_stages_repeat_themselves_and_leave_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    case = WIDTH_SUITE[0]
    first, second = (WidthStage(case, peers.none("")) for _ in range(2))
    assert torch.equal(first.reference(0.25, 1), second.reference(0.25, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_measure_refuses_points_of_no_suite() -> None:
    with pytest.raises(TypeError, match="WidthCase"):
        measure(real.plan("resnet20", [1], [1]), peers.none(""))


def test_accuracy_compares_both_networks() -> None:
    plain = models.resnet20().eval()
    ours = models.resnet20().eval()
    ours.load_state_dict(plain.state_dict())
    trained = real.Trained(plain, subnets.slim(ours, subnets=(1.0,)))
    x = torch.randn(260, 3, 32, 32)
    with torch.no_grad():
        labels = plain(x).argmax(1)
    labels[:26] = (labels[:26] + 1) % 10
    steps: list[str] = []
    found = real.accuracy(trained, x, labels, threads=1, started=steps.append)
    assert found["images"] == 260
    assert found["plain"] == pytest.approx(0.9)
    assert found["dynkern"] == pytest.approx(0.9, abs=2 / 260)
    assert found["difference"] <= 1e-4 * found["largest"]
    assert len(steps) == real.chunks(260) == 2
    with torch.no_grad():
        ours.get_submodule("linear").bias[0] += 1000
    found = real.accuracy(trained, x, labels, threads=1)
    assert found["difference"] == pytest.approx(1000, rel=1e-3)
    assert found["agree"] < 1
