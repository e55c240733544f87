"""How many parameters and multiply-accumulates a network has, in each of its sub-nets."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynkern.nn.batchnorm import SwitchableBatchNorm
from dynkern.nn.dynamic import DynamicModule
from dynkern.nn.packed import PackedTernary, PackedTernaryConv2d
from dynkern.nn.selection import Key, Slice
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.nn.ternary import TernaryModule
from dynkern.nn.transplant import replace
from dynkern.ops import slices

_SLICED = (SlicedConv2d, SlicedLinear, PackedTernary)
_CONVS = (_ConvNd, PackedTernaryConv2d)
_LAYERS = (_ConvNd, nn.Linear, PackedTernary)
_WEIGHTS = ("weight", "packed", "bias")


@dataclass(frozen=True)
class LayerCount:
    """One layer.

    Attributes:
        name: of the module in the network.
        kind: the name of its class.
        parameters: all its active parameters.
        weights: active weights and biases of a convolution or linear layer; 0 for others.
        macs: multiply-accumulates of a convolution or linear layer; 0 for others, and where the layer did not run.
        effective_macs: those of ``macs`` that are left when the zeros of a ternary layer are skipped.
    """

    name: str
    kind: str
    parameters: int
    weights: int
    macs: int
    effective_macs: int


@dataclass(frozen=True)
class Count:
    """A network or sub-net: the sums over its layers. Printed it is a table of them.

    Attributes:
        parameters: all active parameters, those of batch norms and biases too.
        weights: active weights and biases of convolutions and linear layers.
        macs: multiply-accumulates of convolutions and linear layers (the "FLOPs" of many papers), in one call.
        effective_macs: those of ``macs`` that are left when the zeros of ternary layers are skipped.
        layers: those with parameters, in the order of the network's modules.
    """

    parameters: int
    weights: int
    macs: int
    effective_macs: int
    layers: tuple[LayerCount, ...]

    @classmethod
    def of(cls, layers: Iterable[LayerCount]) -> Count:
        """The sums over ``layers``."""
        layers = tuple(layers)
        parameters, weights, macs, effective = (
            sum(column) for column in zip((0, 0, 0, 0), *map(_sums, layers), strict=True)
        )
        return cls(parameters, weights, macs, effective, layers)

    def __str__(self) -> str:
        head = ("layer", "kind", "parameters", "weights", "MACs", "effective MACs")
        rows = [(layer.name, layer.kind, *_figures(layer)) for layer in self.layers]
        total = ("total", "", *_figures(self))
        wide = [max(map(len, column)) for column in zip(head, *rows, total, strict=True)]
        rule = tuple("-" * w for w in wide)
        return "\n".join(_line(row, wide) for row in (head, rule, *rows, rule, total))


def count(net: nn.Module, input: Tensor | Sequence[int]) -> Count | dict[Key, Count]:
    """Parameters and multiply-accumulates (MACs) of ``net``, and of every sub-net if it is slim.

    A copy of the network that shares its weights runs once per sub-net, in eval mode and without gradients; ``net``
    itself is not touched, needs no batch-norm statistics, and may run in other threads meanwhile. MACs are those of
    modules: Conv1d/2d/3d, their transposes, Linear, and dynkern's own; work done by calls of ``torch.nn.functional`` is
    not seen. A module that runs twice counts twice; parameters that modules share count once.

    Args:
        net: any module.
        input: what ``net`` is called with; or its shape, batch size first, then zeros are made. MACs are those of the
            whole batch: a batch of one gives the figure per sample.

    Returns:
        A :class:`Count`; of a slim network a dict of them by sub-net, in the order given to ``dk.slim``.

    Raises:
        TypeError: ``net`` is no module written in Python, or ``input`` is neither a tensor nor a shape.
        ValueError: ``net`` is made of several slim networks whose sub-nets differ.
    """
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    if not isinstance(net, nn.Module) or isinstance(net, torch.jit.ScriptModule):
        raise TypeError(f"net: expected a torch.nn.Module written in Python, got {type(net).__name__}")
    x = _input(net, input)
    # The copy takes every tensor of the network for its own copy already, so only the modules are new.
    twin = copy.deepcopy(net, {id(t): t for t in _tensors(net)}).eval()
    selections = {m.selection for m in twin.modules() if isinstance(m, DynamicModule) and m.selection is not None}
    keys = {selection.keys for selection in selections}
    if len(keys) > 1:
        raise ValueError(f"net: expected one set of sub-nets, got {sorted(map(str, keys))}")
    twin = replace(twin, {m: nn.Identity() for m in twin.modules() if _needs_statistics(m)})
    if not keys:
        return _count(net, None, _run(twin, x))
    counts: dict[Key, Count] = {}
    for key in keys.pop():
        for selection in selections:
            selection.select(key)
        counts[key] = _count(net, key, _run(twin, x))
    return counts


@dataclass
class _Calls:
    """What was seen of one layer while the network ran.

    Attributes:
        positions: how often each of its weights was used.
        inputs: its input channels or features; None if it did not run.
    """

    positions: int = 0
    inputs: int | None = None


def _run(twin: nn.Module, x: Tensor) -> dict[str, _Calls]:
    """Call ``twin`` and note, by name, what its convolutions and linear layers did."""
    layers = {name: m for name, m in twin.named_modules() if isinstance(m, _LAYERS)}
    seen = {name: _Calls() for name in layers}
    hooks = [m.register_forward_hook(partial(_note, seen[name]), with_kwargs=True) for name, m in layers.items()]
    try:
        with torch.no_grad():
            twin(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _note(calls: _Calls, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
    x = args[0] if args else next(iter(kwargs.values()))
    axis = -1 - (len(layer.kernel_size) if isinstance(layer, _CONVS) else 0)
    # A transposed convolution uses its weights once per pixel of its input, the other layers per pixel of the output.
    once = x if isinstance(layer, _ConvTransposeNd) else y
    calls.positions += once.numel() // once.shape[axis]
    calls.inputs = x.shape[axis]


def _count(net: nn.Module, key: Key | None, seen: dict[str, _Calls]) -> Count:
    """The count of sub-net ``key`` of ``net``, or of all of ``net`` if it has none."""
    layers = []
    known: set[int] = set()
    inside: set[nn.Module] = set()
    for name, module in net.named_modules():
        if module in inside:
            continue
        stored = _stored(module, key)
        if isinstance(module, SwitchableBatchNorm):
            inside.update(module.modules())
        new = {part: t for part, t in stored.items() if id(t) not in known}
        known.update(map(id, new.values()))
        size = {part: t.numel() for part, t in new.items()}
        weights = macs = effective = 0
        if isinstance(module, _LAYERS):
            calls = seen[name]
            active = _active(module, key, calls.inputs)
            size |= {part: n for part, n in active.sizes().items() if part in new}
            macs, effective = calls.positions * active.weights, calls.positions * active.nonzeros
            weights = sum(n for part, n in size.items() if part in _WEIGHTS)
            # A weight computed from other parameters (torch.nn.utils.parametrize) is not one of the stored tensors.
            weights += 0 if stored.keys() & {"weight", "packed"} else active.weights
        if size or macs:
            layers.append(LayerCount(name, type(module).__name__, sum(size.values()), weights, macs, effective))
    return Count.of(layers)


def _stored(module: nn.Module, key: Key | None) -> dict[str, Tensor]:
    """The tensors that count as the parameters of ``module`` itself."""
    if isinstance(module, SwitchableBatchNorm) and key is not None:
        module = module.member(key)
    own: dict[str, Tensor | None] = {**module._parameters}
    if isinstance(module, PackedTernary):
        own |= module._buffers
    return {part: t for part, t in own.items() if t is not None}


class _Active(NamedTuple):
    """What runs of a convolution or linear layer: output channels, weights, and weights that are not skipped."""

    outputs: int
    weights: int
    nonzeros: int

    def sizes(self) -> dict[str, int]:
        """The active elements of the tensors that such a layer may have."""
        whole, rows = dict.fromkeys(("weight", "packed"), self.weights), ("bias", "scale", "scale_minus")
        return whole | dict.fromkeys(rows, self.outputs)


def _active(layer: Any, key: Key | None, inputs: int | None) -> _Active:
    """What runs in sub-net ``key``; without sub-nets, what a sliced layer runs on ``inputs`` channels or features."""
    shape, groups = tuple(layer.weight.shape), getattr(layer, "groups", 1)
    if not isinstance(layer, _SLICED):
        return _Active(len(layer.bias) if layer.bias is not None else 0, math.prod(shape), math.prod(shape))
    if layer.selection is not None and key is not None:
        s = layer.slices[key]
    else:
        inputs = shape[1] * groups if inputs is None else inputs
        s = Slice(inputs, shape[0] if groups == 1 else inputs // shape[1] * (shape[0] // groups))
    weights = s.outputs * (s.inputs if groups == 1 else shape[1]) * math.prod(shape[2:])
    if not isinstance(layer, (TernaryModule, PackedTernary)):
        return _Active(s.outputs, weights, weights)
    rows, columns = s.rows, s.columns
    if groups > 1:
        rows = slices.conv_rows(shape, s.inputs, groups, None, s.in_index, None)
        columns = slices.conv_columns(s.inputs, groups, s.in_index)
    with torch.no_grad():
        return _Active(s.outputs, weights, int(layer.effective_weight()[rows][:, columns].count_nonzero()))


def _needs_statistics(module: nn.Module) -> bool:
    """True for a batch norm that might not run in eval mode on one sample; it changes no shape."""
    return isinstance(module, SwitchableBatchNorm) or (isinstance(module, _BatchNorm) and module.running_mean is None)


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module of ``net`` has."""
    for module in net.modules():
        for place in (module._parameters, module._buffers, vars(module)):
            yield from (t for t in place.values() if isinstance(t, Tensor))


def _input(net: nn.Module, input: Tensor | Sequence[int]) -> Tensor:
    """``input``, or zeros of that shape like the network's weights."""
    if isinstance(input, Tensor):
        return input
    if not isinstance(input, Sequence) or not input or not all(type(n) is int and n > 0 for n in input):
        raise TypeError(f"input: expected a tensor, or a shape of integers above 0, got {input!r}")
    tensors = [*net.parameters(), *net.buffers()]
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return torch.zeros(tuple(input), dtype=dtype, device=tensors[0].device if tensors else None)


def _sums(of: Count | LayerCount) -> tuple[int, int, int, int]:
    return of.parameters, of.weights, of.macs, of.effective_macs


def _figures(of: Count | LayerCount) -> tuple[str, ...]:
    return tuple(f"{n:,}" for n in _sums(of))


def _line(row: tuple[str, ...], wide: list[int]) -> str:
    cells = (text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, wide, strict=True)))
    return "  ".join(cells).rstrip()
