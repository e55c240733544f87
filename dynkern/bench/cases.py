"""The table of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        compiled: the widths at which torch.compile runs unless more is asked for: compiling takes up to half a minute.
    """

    name: str
    model: str
    values: tuple[float, ...] = WIDTHS
    batches: tuple[int, ...] = (1,)
    compiled: tuple[float, ...] = ()

    suite = "width"


@dataclass(frozen=True)
class TernaryCase:
    """One layer with ternary weights, run at every share of zeros.

    Attributes:
        name: for people.
        inputs, outputs: channels or features.
        size: height and width of the image of a 3x3 convolution with padding 1; None for a linear layer.
        values: the shares of weights that are zero.
        batches: images, or rows, per call.
        dense_peers: the shares at which other runtimes run too; to them a zero costs what a one does.
    """

    name: str
    inputs: int
    outputs: int
    size: int | None
    values: tuple[float, ...] = ZEROS
    batches: tuple[int, ...] = (1,)
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
class TrainedCase:
    """A trained network on real images, at its full width."""

    name: str

    suite = "real"


Case = WidthCase | TernaryCase | TrainedCase

WIDTH_SUITE = (
    WidthCase("ResNet-20, 32x32", "resnet20", batches=(1, 32), compiled=(0.25, 1.0)),
    WidthCase("ResNet-18, 224x224", "resnet18", batches=(1, 2)),
)
# The 3x3 convolutions of ResNet-20* (Dordoni et al., MLSP 2024), and a linear layer.
SPARSITY_SUITE = (
    TernaryCase("conv 80 to 80, 32x32", 80, 80, 32, batches=(1, 8)),
    TernaryCase("conv 160 to 160, 16x16", 160, 160, 16, batches=(1, 8)),
    TernaryCase("conv 320 to 320, 8x8", 320, 320, 8, batches=(1, 8)),
    TernaryCase("linear 1024 to 1024", 1024, 1024, None, batches=(1, 64)),
)
QUICK_WIDTH_SUITE = (WidthCase("ResNet-20, 32x32", "resnet20", values=(0.25, 1.0)),)
QUICK_SPARSITY_SUITE = (TernaryCase("conv 80 to 80, 32x32", 80, 80, 32, values=(0.0, 0.9)),)

SUITES: dict[tuple[str, bool], tuple[WidthCase | TernaryCase, ...]] = {
    ("width", False): WIDTH_SUITE,
    ("sparsity", False): SPARSITY_SUITE,
    ("all", False): WIDTH_SUITE + SPARSITY_SUITE,
    ("width", True): QUICK_WIDTH_SUITE,
    ("sparsity", True): QUICK_SPARSITY_SUITE,
    ("all", True): QUICK_WIDTH_SUITE + QUICK_SPARSITY_SUITE,
}


@dataclass(frozen=True)
class Point:
    """One thing to measure: a case at one width or share of zeros, with one batch size and thread count."""

    case: Case
    value: float
    batch: int
    threads: int

    def __str__(self) -> str:
        value = f"{self.value:.0%} zeros" if isinstance(self.case, TernaryCase) else f"width {self.value:g}"
        return f"{self.case.name}, {value}, {counted(self.batch, 'batch')}, {counted(self.threads, 'thread')}"


def counted(number: int, what: str) -> str:
    """``batch 8``, ``1 thread``, ``2 threads``."""
    if what == "batch":
        return f"batch {number}"
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def plan(suite: str, quick: bool, threads: Sequence[int], batches: Sequence[int] | None = None) -> list[Point]:
    """The points of a suite, those of one case together; ``batches`` replaces the batch sizes of every case."""
    if (suite, quick) not in SUITES:
        raise ValueError(f"suite: expected 'width', 'sparsity' or 'all', got {suite!r}")
    return [
        Point(case, value, batch, count)
        for case in SUITES[suite, quick]
        for batch in batches or case.batches
        for count in threads
        for value in case.values
    ]
