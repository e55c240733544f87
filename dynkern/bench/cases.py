"""The table of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

WIDTHS = (0.25, 0.5, 0.75, 1.0)
# Where the papers' networks lie (0.44 to 0.9) and both ends.
ZEROS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class WidthCase:
    """One network, run at every width.

    Attributes:
        name: for people.
        model: its name in :data:`dynkern.models.MODELS`.
        values: the widths.
        batches: images per call.
        throughput: images per call that only run with the most threads.
        compiled: the widths at which torch.compile runs unless more is asked for: compiling takes up to half a minute.
        engine_only: nothing else runs.
    """

    name: str
    model: str
    values: tuple[float, ...] = WIDTHS
    batches: tuple[int, ...] = (1,)
    throughput: tuple[int, ...] = ()
    compiled: tuple[float, ...] = ()
    engine_only: bool = False

    suite = "width"


@dataclass(frozen=True)
class IntegerCase(WidthCase):
    """One network in integers, run at every width."""

    suite = "int8"


@dataclass(frozen=True)
class TernaryCase:
    """One layer with ternary weights, run at every share of zeros.

    Attributes:
        name: for people.
        inputs, outputs: channels or features.
        size: height and width of the image of a 3x3 convolution with padding 1; None for a linear layer.
        values: the shares of weights that are zero.
        batches: images, or rows, per call.
        throughput: those that only run with the most threads.
        dense_peers: the shares at which other runtimes run too; to them a zero costs what a one does.
    """

    name: str
    inputs: int
    outputs: int
    size: int | None
    values: tuple[float, ...] = ZEROS
    batches: tuple[int, ...] = (1,)
    throughput: tuple[int, ...] = ()
    dense_peers: tuple[float, ...] = (0.9,)

    suite = "sparsity"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Output channels first."""
        kernel = () if self.size is None else (3, 3)
        return (self.outputs, self.inputs, *kernel)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image or row."""
        return (self.inputs,) if self.size is None else (self.inputs, self.size, self.size)


@dataclass(frozen=True)
class TernaryNetworkCase:
    """A whole ternary network, beside the same weights as floats.

    Attributes:
        name: for people.
        inflate: of :func:`dynkern.models.resnet_binary`.
        values: the one share of weights that are zero, of random ones.
        batches, throughput: as of :class:`TernaryCase`.
        file: a packed network to measure in place of a random one.
    """

    name: str
    inflate: int = 5
    values: tuple[float, ...] = (0.9,)
    batches: tuple[int, ...] = (1,)
    throughput: tuple[int, ...] = ()
    file: Path | None = None

    suite = "ternary-network"


@dataclass(frozen=True)
class TrainedCase:
    """A trained network on real images, at its full width."""

    name: str

    suite = "real"


Case = WidthCase | TernaryCase | TernaryNetworkCase | TrainedCase

WIDTH_SUITE = (
    WidthCase("ResNet-20, 32x32", "resnet20", batches=(1, 32), compiled=(0.25, 1.0)),
    WidthCase("ResNet-18, 224x224", "resnet18", batches=(1, 2)),
)
# The networks for 224x224 images, each beside the other runtimes.
NETWORK_SUITE = (
    WidthCase("ResNet-18, 224x224", "resnet18", throughput=(32,)),
    WidthCase("ResNet-50, 224x224", "resnet50", throughput=(32,)),
    WidthCase("MobileNetV2, 224x224", "mobilenetv2", throughput=(32,)),
)
# How closely time follows the width: every number of channels that the first stage of ResNet-20 can have.
FINE_SUITE = (WidthCase("ResNet-20, 16 widths", "resnet20", tuple(i / 16 for i in range(1, 17)), engine_only=True),)
INT8_SUITE = (
    IntegerCase("ResNet-20, 32x32", "resnet20"),
    IntegerCase("ResNet-18, 224x224", "resnet18", values=(0.25, 1.0)),
)
# The 3x3 convolutions of ResNet-20* (Dordoni et al., MLSP 2024), and a linear layer.
SPARSITY_SUITE = (
    TernaryCase("conv 80 to 80, 32x32", 80, 80, 32, batches=(1, 8)),
    TernaryCase("conv 160 to 160, 16x16", 160, 160, 16, batches=(1, 8)),
    TernaryCase("conv 320 to 320, 8x8", 320, 320, 8, batches=(1, 8)),
    TernaryCase("linear 1024 to 1024", 1024, 1024, None, batches=(1, 64), dense_peers=(0.5, 0.9)),
    TernaryCase("linear 4096 to 4096", 4096, 4096, None, (0.5, 0.9, 0.95), (1, 8, 64, 256), dense_peers=(0.5, 0.9)),
    TernaryCase("linear 2048 to 8192", 2048, 8192, None, (0.5, 0.9, 0.95), (1, 8), dense_peers=(0.5, 0.9)),
)
TERNARY_NETWORK_SUITE = (
    TernaryNetworkCase("ResNet-20*, 90 % of random weights zero"),
    TernaryNetworkCase("ResNet-20*, 95 % of random weights zero", values=(0.95,)),
)
QUICK_TERNARY_NETWORK_SUITE = (TernaryNetworkCase("ResNet-20* of a fifth of the channels, random weights", inflate=1),)
QUICK_WIDTH_SUITE = (WidthCase("ResNet-20, 32x32", "resnet20", values=(0.25, 1.0)),)
QUICK_INT8_SUITE = (IntegerCase("ResNet-20, 32x32", "resnet20", values=(0.25, 1.0)),)
QUICK_SPARSITY_SUITE = (TernaryCase("conv 80 to 80, 32x32", 80, 80, 32, values=(0.0, 0.9)),)

# "all" is what runs in a few minutes; the others take longer or are for one question, and run when asked for.
SUITES: dict[tuple[str, bool], tuple[WidthCase | TernaryCase | TernaryNetworkCase, ...]] = {
    ("networks", False): NETWORK_SUITE,
    ("networks", True): tuple(replace(case, values=(0.25,), throughput=()) for case in NETWORK_SUITE),
    ("fine", False): FINE_SUITE,
    ("fine", True): FINE_SUITE,
    ("width", False): WIDTH_SUITE,
    ("int8", False): INT8_SUITE,
    ("sparsity", False): SPARSITY_SUITE + TERNARY_NETWORK_SUITE,
    ("ternary-network", False): TERNARY_NETWORK_SUITE,
    ("ternary-network", True): QUICK_TERNARY_NETWORK_SUITE,
    ("all", False): WIDTH_SUITE + INT8_SUITE + SPARSITY_SUITE,
    ("width", True): QUICK_WIDTH_SUITE,
    ("int8", True): QUICK_INT8_SUITE,
    ("sparsity", True): QUICK_SPARSITY_SUITE,
    ("all", True): QUICK_WIDTH_SUITE + QUICK_INT8_SUITE + QUICK_SPARSITY_SUITE,
}


@dataclass(frozen=True)
class Point:
    """One thing to measure: a case at one width or share of zeros, with one batch size and thread count."""

    case: Case
    value: float
    batch: int
    threads: int

    def __str__(self) -> str:
        sparse = isinstance(self.case, (TernaryCase, TernaryNetworkCase))
        value = f"{self.value:.0%} zeros" if sparse else f"width {self.value:g}"
        return f"{self.case.name}, {value}, {counted(self.batch, 'batch')}, {counted(self.threads, 'thread')}"


def counted(number: int, what: str) -> str:
    """``batch 8``, ``1 thread``, ``2 threads``."""
    if what == "batch":
        return f"batch {number}"
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def plan(
    suite: str,
    quick: bool,
    threads: Sequence[int],
    batches: Sequence[int] | None = None,
    models: Sequence[str] | None = None,
) -> list[Point]:
    """The points of a suite, those of one case together.

    Args:
        suite, quick: a key of :data:`SUITES`.
        threads: the thread counts.
        batches: in place of the batch sizes of every case.
        models: only the cases of networks of these names.

    Raises:
        ValueError: there is no such suite, or it has no network of such a name.
    """
    if (suite, quick) not in SUITES:
        raise ValueError(f"suite: expected one of {sorted({name for name, _ in SUITES})}, got {suite!r}")
    cases = SUITES[suite, quick]
    if models is not None:
        have = [case.model for case in cases if isinstance(case, WidthCase)]
        if unknown := [name for name in models if name not in have]:
            raise ValueError(f"models: expected some of {have} for suite {suite!r}, got {unknown}")
        cases = tuple(case for case in cases if isinstance(case, WidthCase) and case.model in models)
    points = []
    for case in cases:
        runs = [(batch, count) for batch in batches or case.batches for count in threads]
        if batches is None:
            runs += [(batch, max(threads)) for batch in case.throughput]
        points += [Point(case, value, batch, count) for batch, count in runs for value in case.values]
    return points
