"""A whole ternary network: one set of weights as floats, packed, in the engine, and in other runtimes."""

from __future__ import annotations

import copy
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import nn

from dynkern import models
from dynkern.bench import peers
from dynkern.bench.cases import Point, TernaryNetworkCase
from dynkern.bench.peers import Choice, Subject
from dynkern.bench.results import ENGINE, ENGINE_DENSE, ENGINE_INT8, MODULES
from dynkern.bench.stages import (
    INTEGER_TOLERANCE,
    Build,
    Task,
    double,
    engine_call,
    network_error,
    network_tolerance,
    once,
)
from dynkern.count import Count, count
from dynkern.engine import Compiled, compile
from dynkern.engine.ranges import calibrate
from dynkern.io import Codec, load, save
from dynkern.nn.packed import PackedTernary
from dynkern.ternary import pack, report, ternarize

SHAPE = (3, 32, 32)
STEM = 16
# Images that give a random network's batch norms statistics.
CALIBRATION = 64


class Network:
    """One ternary network.

    Args:
        packed: for images of :data:`SHAPE`.
    """

    def __init__(self, packed: nn.Module) -> None:
        self.packed = packed.eval()
        self.engine = once(lambda: compile(self.packed, torch.zeros(1, *SHAPE)))
        self.dense_engine = once(lambda: compile(self.plain, torch.zeros(1, *SHAPE)))

    @cached_property
    def plain(self) -> nn.Module:
        """The same values in PyTorch's own layers."""
        net = copy.deepcopy(self.packed)
        for layer in net.modules():
            if isinstance(layer, PackedTernary):
                _make_plain(layer)
        return net

    def sizes(self) -> dict[str, int]:
        """Bytes: of files of the float32 and of the packed network; of the ternary weights alone; of their entropy.

        The entropy-coded file is left out where its coder is not installed.
        """
        found = {}
        files: list[tuple[str, nn.Module, Codec]] = [("float32", self.plain, "2bit"), ("packed", self.packed, "2bit")]
        if importlib.util.find_spec("constriction") is not None:
            files.append(("entropy-coded", self.packed, "entropy"))
        with tempfile.TemporaryDirectory() as folder:
            for name, net, codec in files:
                file = Path(folder, f"{name}.safetensors")
                save(net, file, codec=codec)
                found[f"{name} file"] = file.stat().st_size
        total = report(self.packed).total
        return found | {
            "float32 weights": total.float_bytes,
            "packed weights": total.packed_bytes,
            "entropy of the weights": total.coded_bytes,
        }


def read(file: str | os.PathLike[str]) -> Network:
    """The network of a file that :func:`dynkern.save` wrote: a packed ``resnet_binary``, of any width.

    Raises:
        ValueError: the file is damaged, or of another network.
        OSError: it cannot be read.
    """
    from dynkern.tensorfile import read as tensors_of

    shape = tensors_of(file)[0].get("bn1.weight", torch.empty(0)).shape
    if len(shape) != 1 or shape[0] == 0 or shape[0] % STEM:
        raise ValueError(f"{os.fspath(file)}: expected a packed resnet_binary, found no stem of 16, 32, ... channels")
    net = load(models.resnet_binary(inflate=shape[0] // STEM), file)
    if not any(isinstance(layer, PackedTernary) for layer in net.modules()):
        raise ValueError(f"{os.fspath(file)}: expected packed layers (see dynkern.pack), found none")
    return Network(net)


def random(inflate: int, zeros: float) -> Network:
    """A network with random weights, that share of them zero, whose batch norms have seen random images."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = models.resnet_binary(inflate=inflate)
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.uniform_(-1, 1)
        ternarize(net, zeros)
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = None  # the mean over all batches
        net.train()(torch.randn(CALIBRATION, *SHAPE))
        return Network(pack(net))


class TernaryNetworkStage:
    """The network of a case, and its images."""

    def __init__(self, case: TernaryNetworkCase, choice: Choice) -> None:
        self.case, self.choice = case, choice
        self.network = network_of(case)
        self.int8 = cache(self._int8)
        self.inputs = cache(lambda batch: torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1)))
        self.reference = cache(lambda batch: double(self.network.plain, self.inputs(batch)))

    def task(self, point: Point) -> Task:
        """All that runs at ``point``."""
        net, x = self.network, self.inputs(point.batch)
        subject = Subject(net.plain, x)
        variants: dict[str, Build] = {
            ENGINE: lambda: engine_call(net.engine(), x),
            ENGINE_INT8: lambda: engine_call(self.int8(point.batch), x),
            ENGINE_DENSE: lambda: engine_call(net.dense_engine(), x),
            MODULES: lambda: peers.eager(Subject(net.packed, x), point.threads),
            "eager": lambda: peers.eager(subject, point.threads),
        }
        error = network_error(self.reference(point.batch))
        quantised = {ENGINE_INT8: error}
        for peer in self.choice.wanted:
            if peer.variant == "torch_compile" and not self.choice.everywhere:
                continue
            variants[peer.variant] = lambda build=peer.build: build(subject, point.threads)  # type: ignore[misc]
            if peer.int8 is not None:
                variants[f"{peer.variant}_int8"] = lambda build=peer.int8: build(subject, point.threads)  # type: ignore[misc]
                quantised[f"{peer.variant}_int8"] = error
        dense, run = (_macs(count(each, x)) for each in (net.plain, net.packed))
        tolerance = network_tolerance(net.plain)
        return Task(variants, error, tolerance, run[1], dense[0], quantised, INTEGER_TOLERANCE)

    def _int8(self, batch: int) -> Compiled:
        """The engine with activations of 8 bits, calibrated, as the others are, on the images that it is timed on."""
        net, x = self.network.packed, self.inputs(batch)
        return compile(net, x, int8=calibrate(net, [x]))


def network_of(case: TernaryNetworkCase) -> Network:
    """The network that ``case`` measures; read or made once."""
    return _network(case.file, case.inflate, case.values[0])


def with_file(points: Sequence[Point], file: Path) -> list[Point]:
    """``points``, of the packed network in ``file``; raises what :func:`read` does."""
    net = read(file)
    zeros = report(net.packed).total.counts.sparsity
    case = TernaryNetworkCase(file.parent.name or file.name, values=(zeros,), file=file)
    return [Point(case, zeros, point.batch, point.threads) for point in points]


@cache
def _network(file: Path | None, inflate: int, zeros: float) -> Network:
    return random(inflate, zeros) if file is None else read(file)


def _macs(found: object) -> tuple[int, int]:
    if not isinstance(found, Count):
        raise TypeError(f"net: expected a network without sub-nets, got {type(found).__name__}")
    return found.macs, found.effective_macs


def _make_plain(layer: PackedTernary) -> None:
    """Change a packed layer in place to PyTorch's, with the same values."""
    weight, bias = layer.effective_weight(), layer.bias
    for name in ("packed", "scale", "scale_minus", "bias"):
        layer._buffers.pop(name, None)
    vars(layer).pop("_weight", None)
    cls: type[nn.Module] = nn.Conv2d if weight.dim() == 4 else nn.Linear
    layer.__class__ = cls  # type: ignore[assignment]
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone(), requires_grad=False))
