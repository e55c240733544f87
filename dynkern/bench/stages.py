"""What stands on the stage while a case is measured: its networks and weights, its inputs, and the right answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynkern import models, ops
from dynkern.bench import low_bits, peers
from dynkern.bench.cases import IntegerCase, Point, TernaryCase, WidthCase
from dynkern.bench.peers import Call, Choice, Subject
from dynkern.bench.results import ENGINE, ENGINE_INT8, ENGINE_INT16, INT8, LOW_BITS, MODULES
from dynkern.count import count
from dynkern.engine import Compiled, compile
from dynkern.engine.ranges import calibrate
from dynkern.nn.packed import PackedTernaryConv2d, PackedTernaryLinear
from dynkern.nn.selection import Key
from dynkern.subnets import calibrate_bn, extract, select, slim

EPS = torch.finfo(torch.float32).eps
# Half a step, of 1/127 or with some baselines 2/127 of the greatest input, for each input that is not skipped, and a
# little for rounding.
QUANTISED = 1.01 / 127
# Images that give the batch norms of random networks statistics, so that activations neither vanish nor explode.
CALIBRATION = (8, 64)

# How far integers of 8 bits may be off, relative to the largest output. It only tells a program that is wrong: random
# networks of fifty layers are off by 0.2 in every runtime. What integers do to answers is measured on real images.
INTEGER_TOLERANCE = 0.5

Build = Callable[[], Call]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One point, ready to be run.

    Attributes:
        variants: by name, what prepares each of them.
        error: how far an output is from the right one.
        tolerance: what that may be.
        quantised: by name, the error of those variants that quantise activations, which may be
            ``quantised_tolerance``.
        macs, dense_macs: see :class:`dynkern.bench.results.Row`.
    """

    variants: Mapping[str, Build]
    error: Callable[[Tensor], float]
    tolerance: float
    macs: int
    dense_macs: int
    quantised: Mapping[str, Callable[[Tensor], float]] = field(default_factory=dict)
    quantised_tolerance: float = QUANTISED

    def judge(self, name: str, y: Tensor) -> tuple[float, float]:
        """How far an output of that variant is from the right one, and what that may be."""
        if name in self.quantised:
            return self.quantised[name](y), self.quantised_tolerance
        return self.error(y), self.tolerance


class WidthStage:
    """A network with random weights at every width, its engine, and its plain twins."""

    def __init__(self, case: WidthCase, choice: Choice) -> None:
        self.case, self.choice = case, choice
        with _seeded():
            model = models.build(case.model).eval()
            self.shape = models.MODELS[case.model].input_shape
            self.net = slim(model, subnets=case.values)
            images, side = CALIBRATION
            channels, height, width = self.shape
            batch = torch.randn(images, channels, min(height, side), min(width, side))
            calibrate_bn(self.net, [batch], subnets=case.values)
        self.net.eval()
        self.plain = cache(self._plain)
        self.inputs = cache(self._inputs)
        self.engine = once(lambda: compile(self.net, self.inputs(1)))
        self.subject = cache(self._subject)
        self.reference = cache(self._reference)
        counted = count(self.net, (1, *self.shape))
        self.macs: dict[Key, int] = {key: c.macs for key, c in counted.items()} if isinstance(counted, dict) else {}

    def task(self, point: Point) -> Task:
        """All that runs at ``point``."""
        plain, x = self.plain(point.value), self.inputs(point.batch)
        subject, reference = self.subject(point.value, point.batch), self.reference(point.value, point.batch)
        variants: dict[str, Build] = {
            MODULES: lambda: self._modules(point),
            "eager_sliced": lambda: peers.eager(Subject(peers.sliced_twin(self.net, plain), x), point.threads),
            "eager_extracted": lambda: peers.eager(subject, point.threads),
            ENGINE: lambda: engine_call(self.engine(), x, point.value),
        }
        if self.case.engine_only:
            variants = {ENGINE: variants[ENGINE]}
        for peer in () if self.case.engine_only else self.choice.wanted:
            if self.choice.everywhere or peer.variant != "torch_compile" or self._affords_compiling(point):
                variants[peer.variant] = lambda peer=peer: peer.build(subject, point.threads)  # type: ignore[misc]
        return Task(
            variants,
            network_error(reference),
            network_tolerance(plain),
            point.batch * self.macs[point.value],
            point.batch * self.macs[max(self.macs)],
        )

    def _modules(self, point: Point) -> Call:
        select(self.net, point.value)
        return peers.eager(Subject(self.net, self.inputs(point.batch)), point.threads)

    def _affords_compiling(self, point: Point) -> bool:
        return point.value in self.case.compiled and point.batch == min(self.case.batches) and point.threads == 1

    def _plain(self, width: float) -> nn.Module:
        return extract(self.net, width).eval()

    def _inputs(self, batch: int) -> Tensor:
        return _random(batch, *self.shape)

    def _subject(self, width: float, batch: int) -> Subject:
        return Subject(self.plain(width), self.inputs(batch))

    def _reference(self, width: float, batch: int) -> Tensor:
        return double(self.plain(width), self.inputs(batch))


class IntegerStage(WidthStage):
    """The network of a :class:`WidthStage` in integers; all are calibrated on the inputs that they are timed on."""

    def __init__(self, case: IntegerCase, choice: Choice) -> None:
        super().__init__(case, choice)
        ranges = once(lambda: calibrate(self.net, [self.inputs(batch) for batch in case.batches]))
        self.int8 = once(lambda: compile(self.net, self.inputs(1), int8=ranges()))
        self.int16 = once(lambda: compile(self.net, self.inputs(1), int16=ranges()))

    def task(self, point: Point) -> Task:
        """All that runs at ``point``."""
        x, subject = self.inputs(point.batch), self.subject(point.value, point.batch)
        variants: dict[str, Build] = {
            ENGINE: lambda: engine_call(self.engine(), x, point.value),
            ENGINE_INT8: lambda: engine_call(self.int8(), x, point.value),
            ENGINE_INT16: lambda: engine_call(self.int16(), x, point.value),
        }
        for peer in self.choice.wanted:
            if peer.int8 is not None:
                variants[f"{peer.variant}_int8"] = lambda build=peer.int8: build(subject, point.threads)  # type: ignore[misc]
        macs, dense = point.batch * self.macs[point.value], point.batch * self.macs[max(self.macs)]
        error = network_error(self.reference(point.value, point.batch))
        return Task(variants, error, INTEGER_TOLERANCE, macs, dense)


class TernaryStage:
    """A layer with random ternary weights at every share of zeros."""

    def __init__(self, case: TernaryCase, choice: Choice) -> None:
        self.case, self.choice = case, choice
        self.signs = cache(self._signs)
        self.packed = cache(self._packed)
        self.inputs = cache(self._inputs)
        self.reference = cache(self._reference)

    def task(self, point: Point) -> Task:
        """All that runs at ``point``."""
        signs, x = self.signs(point.value), self.inputs(point.batch)
        reference, scale = self.reference(point.value, point.batch)
        subject = Subject(_plain_layer(signs.float()), x)
        variants: dict[str, Build] = {
            MODULES: lambda: peers.eager(Subject(self.packed(point.value), x), point.threads),
            INT8: lambda: peers.eager(Subject(self.packed(point.value, "int8"), x), point.threads),
            "torch_dense": lambda: peers.eager(subject, point.threads),
        }
        if self.case.size is None:
            variants["torch_sparse"] = lambda: peers.sparse(subject, point.threads)
        wanted = {peer.package for peer in self.choice.wanted}
        for peer in low_bits.PEERS if self.case.size is None and point.value in self.case.dense_peers else ():
            if peer.package in wanted or (wanted and peer.package == "torch"):
                variants[peer.variant] = lambda peer=peer: peer.build(subject, point.threads)  # type: ignore[misc]
        for peer in self.choice.wanted:
            if self.choice.everywhere or (peer.variant != "torch_compile" and point.value in self.case.dense_peers):
                variants[peer.variant] = lambda peer=peer: peer.build(subject, point.threads)  # type: ignore[misc]
        per_weight = point.batch * (1 if self.case.size is None else self.case.size**2)
        return Task(
            variants,
            lambda y: float(((y.double() - reference).abs() / scale.clamp_min(1e-300)).max()),
            EPS * signs[0].numel(),
            per_weight * int(signs.count_nonzero()),
            per_weight * signs.numel(),
            dict.fromkeys((INT8, *LOW_BITS), lambda y: self._quantised(y, signs, x, reference)),
        )

    def _quantised(self, y: Tensor, signs: Tensor, x: Tensor, reference: Tensor) -> float:
        """The error relative to the greatest input times the weights of an output that are not zero."""
        most = float(x.abs().max()) * signs.flatten(1).count_nonzero(1).double()
        most = most if self.case.size is None else most[:, None, None]
        return float(((y.double() - reference).abs() / most.clamp_min(1e-300)).max())

    def _packed(self, zeros: float, activation: str = "float32") -> nn.Module:
        weight = ops.TernaryWeight.pack(self.signs(zeros))
        layer = PackedTernaryLinear(weight) if self.case.size is None else PackedTernaryConv2d(weight, padding=1)
        layer.activation = activation
        return layer

    def _inputs(self, batch: int) -> Tensor:
        return _random(batch, *self.case.input_shape)

    def _reference(self, zeros: float, batch: int) -> tuple[Tensor, Tensor]:
        """The right outputs, and what rounding is relative to: the sum of the magnitudes behind each of them."""
        x, weight = self.inputs(batch).double(), self.signs(zeros).double()
        return self._dense(x, weight), self._dense(x.abs(), weight.abs())

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight) if self.case.size is None else F.conv2d(x, weight, padding=1)

    def _signs(self, zeros: float) -> Tensor:
        """int8, with just that share of zeros in random places, and as many +1 as -1 on average."""
        generator = torch.Generator().manual_seed(round(1000 * zeros))
        shape = torch.Size(self.case.weight_shape)
        signs = torch.randint(0, 2, (shape.numel(),), generator=generator, dtype=torch.int8) * 2 - 1
        signs[torch.randperm(shape.numel(), generator=generator)[: round(zeros * shape.numel())]] = 0
        return signs.reshape(shape)


def _plain_layer(weight: Tensor) -> nn.Module:
    """The dense layer with ``weight``, without bias; a convolution is 3x3 with padding 1."""
    layer: nn.Conv2d | nn.Linear
    if weight.dim() == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer.eval()


def double(net: nn.Module, x: Tensor) -> Tensor:
    """What ``net`` gives in float64, without gradients."""
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double())


def network_error(reference: Tensor) -> Callable[[Tensor], float]:
    """Gives the largest difference of an output from ``reference``, relative to the largest of ``reference``."""
    scale = float(reference.abs().max())
    return lambda y: float((y.double() - reference).abs().max()) / scale


def network_tolerance(plain: nn.Module) -> float:
    """The unit round-off times the products summed on the way to an output.

    Each layer adds its own K eps to the relative error, to first order and at worst; batch norm keeps the layers in
    between from magnifying it.
    """
    layers = (module for module in plain.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    return EPS * sum(layer.weight[0].numel() for layer in layers)


def engine_call(engine: Compiled, x: Tensor, subnet: Key | None = None) -> Call:
    """One call of the engine, with as many threads as torch uses at the call."""
    return lambda: engine(x, subnet=subnet)


def once(make: Callable[[], T]) -> Callable[[], T]:
    """``make``, called when it is first needed and never again: its result every time, or its error."""
    made: list[T] = []
    failed: list[Exception] = []

    def result() -> T:
        if failed:
            raise failed[0]
        if not made:
            try:
                made.append(make())
            except Exception as error:
                failed.append(error)
                raise
        return made[0]

    return result


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random weights in every run, without touching the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
