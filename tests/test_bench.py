"""The benchmark: timing on made-up clocks, the cases, their baselines, and checks before times."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dynkern import engine, models, subnets
from dynkern.bench import low_bits, peers, real, stages
from dynkern.bench.cases import (
    FINE_SUITE,
    INT8_SUITE,
    SPARSITY_SUITE,
    WIDTH_SUITE,
    WIDTHS,
    IntegerCase,
    Point,
    TernaryCase,
    WidthCase,
    plan,
)
from dynkern.bench.results import ENGINE, ENGINE_INT8, INT8, LOW_BITS, MODULES, RUNTIMES, rival
from dynkern.bench.run import MOST, Budget, measure, run
from dynkern.bench.stages import IntegerStage, Task, TernaryStage, WidthStage, once
from dynkern.bench.timer import Measurement, interleave, threads
from dynkern.count import count
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.lower import lower
from dynkern.engine.plan import Conv2d, Linear

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
    cases = WIDTH_SUITE + INT8_SUITE + SPARSITY_SUITE
    assert len(set(points)) == len(points) == sum(len(c.values) * len(c.batches) * 2 for c in cases)
    assert {p.case for p in plan("int8", False, [1])} == set(INT8_SUITE)
    order = list(dict.fromkeys(point.case for point in points))
    assert [point.case for point in points] == sorted((p.case for p in points), key=order.index)
    assert {p.batch for p in plan("width", False, [1], [3, 5])} == {3, 5}
    assert all(1 in case.batches and max(case.batches) > 1 for case in WIDTH_SUITE + SPARSITY_SUITE)
    with pytest.raises(ValueError, match="suite"):
        plan("depth", False, [1])


def test_plan_of_the_networks() -> None:
    points = plan("networks", False, [1, 2])
    assert len(set(points)) == len(points)
    of_one = [p for p in points if p.case.name == "MobileNetV2, 224x224"]
    expected = [(batch, threads_, w) for batch, threads_ in ((1, 1), (1, 2), (32, 2)) for w in WIDTHS]
    assert [(p.batch, p.threads, p.value) for p in of_one] == expected
    assert {p.case.model for p in points if isinstance(p.case, WidthCase)} == {"resnet18", "resnet50", "mobilenetv2"}
    assert {p.batch for p in plan("networks", False, [1, 2], [3])} == {3}
    (point,) = plan("networks", True, [1], models=["resnet50"])
    assert (point.case.name, point.value, point.batch) == ("ResNet-50, 224x224", 0.25, 1)
    with pytest.raises(ValueError, match=r"models: expected some of \['resnet18', .*, got \['resnet20'\]"):
        plan("networks", False, [1], models=["resnet50", "resnet20"])


def test_the_engine_alone_at_sixteen_widths() -> None:
    points = plan("fine", False, [1])
    assert [p.value for p in points] == [i / 16 for i in range(1, 17)]
    stage = WidthStage(WidthCase("ResNet-20", "resnet20", (0.0625, 1.0), engine_only=True), peers.choose("auto"))
    task = stage.task(Point(stage.case, 0.0625, 1, 1))
    assert list(task.variants) == [ENGINE]
    assert task.error(task.variants[ENGINE]()()) <= task.tolerance


def test_macs_of_the_plans_rise_with_the_width() -> None:
    (case,) = FINE_SUITE
    net = subnets.slim(models.resnet20(), case.values).eval()
    subnets.calibrate_bn(net, [torch.randn(4, 3, 32, 32)])
    macs = []
    for width in case.values:
        lowered = lower(capture(net, (3, 32, 32), torch.float32, width), tensors_of(net))
        values = lowered.plan.values
        macs.append(0)
        for step in lowered.plan.steps:
            if isinstance(step, (Conv2d, Linear)):
                taps = math.prod(lowered.weights[step.weight.name].shape[2:])
                out = values[step.y]
                macs[-1] += values[step.x].channels * taps * out.channels * out.height * out.width
    assert macs == sorted(set(macs))
    # All the work of the sub-nets is in the plans, and nothing else.
    assert macs == [found.macs for found in count(net, (1, 3, 32, 32)).values()]


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


@pytest.mark.parametrize("own", ["dynkern", "engine"])
def test_our_own_wrong_output_or_failure_gets_no_time(own: str) -> None:
    rows = run(POINT, made_task(**{own: lambda: torch.zeros(1), "torch_dense": lambda: torch.ones(1)}), lambda: 0.0)
    assert [(row.status, row.median_s is None) for row in rows] == [("wrong", True), ("ok", False)]
    rows = run(POINT, made_task(**{own: lambda: torch.ones(1 // 0), "torch_dense": lambda: torch.ones(1)}), lambda: 0.0)
    assert [(row.status, row.median_s is None) for row in rows] == [("failed", True), ("ok", False)]
    assert rows[0].reason.startswith("ZeroDivisionError")


def test_what_is_made_once_is_made_when_needed_and_fails_again_alike() -> None:
    calls = []

    def make() -> int:
        calls.append(1)
        if fails:
            raise KeyError("no")
        return 7

    fails = False
    result = once(make)
    assert calls == []
    assert [result(), result()] == [7, 7]
    assert len(calls) == 1
    fails = True
    result = once(make)
    for _ in range(2):
        with pytest.raises(KeyError, match="no"):
            result()
    assert len(calls) == 2


def test_baselines_are_compared_with_their_like() -> None:
    assert {rival(peer.variant, "width") for peer in peers.OPTIONAL.values()} == {ENGINE}
    assert {rival(name, "width") for name in ("eager_sliced", "eager_extracted")} == {MODULES}
    assert {rival(name, "sparsity") for name in ("torch_dense", "torch_sparse", *RUNTIMES)} == {MODULES}
    assert {rival(name, "sparsity") for name in LOW_BITS} == {INT8}
    assert rival("eager", "real") == MODULES
    assert {rival(f"{name}_int8", "int8") for name in ("onnxruntime", "openvino")} == {ENGINE_INT8}


@pytest.mark.parametrize("peer", low_bits.PEERS, ids=lambda peer: peer.variant)
def test_quantised_baselines_compute_the_layer(peer: peers.Peer) -> None:
    pytest.importorskip(peer.package)
    case = TernaryCase("small", 256, 24, None)
    stage = TernaryStage(case, peers.Choice((peers.Peer("any", peer.package, peer.build),), False, {}))
    task = stage.task(Point(case, 0.9, 5, 1))
    error, tolerance = task.judge(peer.variant, torch.as_tensor(task.variants[peer.variant]()()))
    assert 0 < error <= tolerance
    assert task.judge(peer.variant, stage.inputs(5)[:, :24])[0] > tolerance


def test_names_of_our_variants() -> None:
    names = ("dynkern engine", "dynkern modules", "dynkern modules", "dynkern")
    asked = ((ENGINE, "width"), (MODULES, "width"), (MODULES, "real"), (MODULES, "sparsity"))
    assert tuple(peers.label(*what) for what in asked) == names
    assert peers.label("eager_sliced", "width") == peers.LABELS["eager_sliced"]
    assert peers.label("from_elsewhere", "width") == "from_elsewhere"


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
        expected = {"dynkern", "dynkern_int8", "torch_dense"} | ({"torch_sparse"} if size is None else set())
        assert set(task.variants) == expected
        for name, build in task.variants.items():
            error, tolerance = task.judge(name, build()())
            assert error <= tolerance


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
        assert ran == {"dynkern", "engine", "eager_sliced", "eager_extracted"}
        # Only where it is worth its compile time: one image, one thread, at the widths that the case names.
        assert "torch_compile" not in task.variants
        assert ("torch_compile" in stage.task(Point(case, width, 1, 1)).variants) == (width == 1.0)
        with torch.no_grad():
            assert all(task.error(task.variants[name]()()) <= task.tolerance for name in ran)
    assert macs == {1.0: 2 * 40_551_040, 0.25: 2 * 2_617_504}


def test_integer_stage_runs_every_runtime_right() -> None:
    case = IntegerCase("ResNet-20", "resnet20", values=(0.25, 1.0))
    pytest.importorskip("onnxruntime")
    chosen = peers.Choice((peers.OPTIONAL["torch.compile"], peers.OPTIONAL["onnxruntime"]), False, {})
    stage = IntegerStage(case, chosen)
    for width in case.values:
        task = stage.task(Point(case, width, 1, 1))
        assert list(task.variants) == ["engine", "engine_int8", "engine_int16", "onnxruntime_int8"]
        with torch.no_grad():
            errors = [task.error(torch.as_tensor(build()())) for build in task.variants.values()]
        # Integers are used, and more bits are better.
        assert errors[0] < 1e-5 < errors[2] < errors[1] < 0.1
        assert 1e-3 < errors[3] < 0.1


def test_a_network_is_compiled_once_for_all_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    used = []

    def compile(net: nn.Module, x: torch.Tensor) -> Callable[..., torch.Tensor]:
        made.append(tuple(x.shape))
        compiled = engine.compile(net, x)

        def call(x: torch.Tensor, subnet: float) -> torch.Tensor:
            used.append((subnet, len(x), torch.get_num_threads()))
            return compiled(x, subnet=subnet)

        return call

    monkeypatch.setattr(stages, "compile", compile)
    case = WidthCase("ResNet-20", "resnet20", values=(0.25, 1.0))
    points = [Point(case, width, batch, count) for batch in (1, 2) for count in (1, 2) for width in case.values]
    rows = measure(points, peers.none(""), budget_s=0.01)
    assert made == [(1, 3, 32, 32)]
    assert list(dict.fromkeys(used)) == [(point.value, point.batch, point.threads) for point in points]
    assert {row.status for row in rows} == {"ok"}


def test_a_network_that_does_not_compile_is_our_failure_at_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def compile(net: nn.Module, x: torch.Tensor) -> None:
        made.append(net)
        raise ValueError("layer1: the engine has no operator of that kind\nand more")

    monkeypatch.setattr(stages, "compile", compile)
    case = WidthCase("ResNet-20", "resnet20", values=(0.25, 1.0))
    rows = measure([Point(case, width, 1, 1) for width in case.values], peers.none(""), budget_s=0.01)
    failed = [row for row in rows if row.status != "ok"]
    assert [(row.variant, row.value, row.status) for row in failed] == [
        ("engine", 0.25, "failed"),
        ("engine", 1.0, "failed"),
    ]
    assert {row.reason for row in failed} == {"ValueError: layer1: the engine has no operator of that kind"}
    assert len(rows) == 8
    assert len(made) == 1


def test_stages_repeat_themselves_and_leave_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    case = WIDTH_SUITE[0]
    first, second = (WidthStage(case, peers.none("")) for _ in range(2))
    assert torch.equal(first.reference(0.25, 1), second.reference(0.25, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_measure_refuses_points_of_no_suite() -> None:
    with pytest.raises(TypeError, match="points: expected a case of a suite, got TrainedCase"):
        measure(real.plan("resnet20", [1], [1]), peers.none(""))


@pytest.fixture
def trained() -> real.Trained:
    torch.manual_seed(0)
    return real.trained(models.resnet20().eval())


def test_accuracy_compares_every_variant_with_pytorch(trained: real.Trained) -> None:
    x = torch.randn(260, 3, 32, 32)
    with torch.no_grad():
        labels = trained.plain(x).argmax(1)
    labels[:26] = (labels[:26] + 1) % 10
    steps: list[str] = []
    found = real.accuracy(trained, x, labels, threads=1, started=steps.append)
    assert found["images"] == 260
    assert found["plain"] == pytest.approx(0.9)
    assert found["dynkern"] == pytest.approx(0.9, abs=2 / 260)
    assert found["engine"] == pytest.approx(0.9, abs=2 / 260)
    assert found["difference"] <= 1e-4 * found["largest"]
    assert found["engine_difference"] <= 1e-4 * found["largest"]
    assert "engine_int8" not in found
    assert len(steps) == real.chunks(260) == 2
    with torch.no_grad():
        trained.modules.get_submodule("linear").bias[0] += 1000
    found = real.accuracy(trained, x, labels, threads=1)
    assert found["difference"] == pytest.approx(1000, rel=1e-3)
    assert found["agree"] < 1
    # The engine has the weights it was compiled with, until it takes in the new ones.
    assert found["engine_difference"] <= 1e-4 * found["largest"]
    trained.engine().refresh()
    found = real.accuracy(trained, x, labels, threads=1)
    assert found["engine_difference"] == pytest.approx(1000, rel=1e-3)
    assert found["engine_agree"] < 1


def test_accuracy_in_integers(trained: real.Trained) -> None:
    x = torch.randn(20, 3, 32, 32)
    found = real.accuracy(replace(trained, seen=x), x, torch.zeros(20, dtype=torch.int64), threads=1)
    assert 0 < found["engine_int8_difference"] < 0.1 * found["largest"]
    assert found["engine_int8_agree"] >= 0.8
    assert trained.seen is None
    with pytest.raises(ValueError, match="calibrate"):
        trained.int8()


def test_calibration_images_are_optional(trained: real.Trained, tmp_path: Path) -> None:
    assert real.with_training_images(trained, tmp_path) is trained


def test_a_trained_network_that_does_not_compile_is_our_failure(trained: real.Trained) -> None:
    def engine_() -> engine.Compiled:
        raise ValueError("no such operator")

    broken = real.Trained(trained.plain, trained.modules, engine_)
    x = torch.randn(4, 3, 32, 32)
    found = real.accuracy(broken, x, torch.zeros(4, dtype=torch.int64), threads=1)
    assert {"plain", "dynkern"} < set(found)
    assert not any(key.startswith("engine") for key in found)
    rows = real.measure(broken, x, real.plan("resnet20", [4], [1]), budget_s=0.01)
    assert [(row.variant, row.status) for row in rows] == [("eager", "ok"), ("dynkern", "ok"), ("engine", "failed")]
    assert rows[-1].reason == "ValueError: no such operator"
