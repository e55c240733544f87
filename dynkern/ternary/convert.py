"""Making the layers of a network ternary, and packing them for inference."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn

from dynkern.nn import schemes
from dynkern.nn.packed import make_packed
from dynkern.nn.schemes import Delta, Scheme
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear, TernaryModule, make_ternary
from dynkern.ops.ternary_weight import TernaryWeight, check_delta
from dynkern.ternary.growth import Growth

_LOG = Growth("log")
# Their subclasses are refused: what a subclass does otherwise would be lost.
TERNARIZABLE: tuple[type[nn.Module], ...] = (
    nn.Conv2d,
    nn.Linear,
    SlicedConv2d,
    SlicedLinear,
    TernaryConv2d,
    TernaryLinear,
)


def ternarize(
    model: nn.Module,
    delta: Growth | float | None = None,
    skip: Collection[str] = (),
    *,
    scheme: str | Scheme = "delta",
) -> nn.Module:
    """Make every ``Conv2d`` and ``Linear`` of ``model`` ternary, in place, for training (Dordoni et al., MLSP 2024).

    The layers change their class and stay the same objects with the same parameters, hooks and sub-nets: an optimiser
    made before goes on working. A layer that is ternary already gets the new threshold.

    Args:
        model: any module; it may be slim.
        delta: the threshold, 0 <= delta < 1, or how it grows (then :func:`set_epoch` moves it; until then it is that of
            epoch 1). By default ``Growth("log")``, the paper's best. For the scheme ``"delta"`` alone.
        skip: qualified names of modules to leave as they are, with all they contain. The paper makes every layer
            ternary, the first, the last and the shortcuts too.
        scheme: the ternariser, or its name in :data:`dynkern.ternary.SCHEMES`: ``"delta"``, the paper's, or one of
            those that it compares with (``"twn"``, ``"ttq"``, ``"ec2t"``, ``"binary"``). ``"ttq"`` and ``"ec2t"`` add
            two parameters to a layer: make the optimiser afterwards.

    Returns:
        ``model``.

    Raises:
        ValueError, TypeError: ``delta`` is out of range or not for ``scheme``, ``skip`` names no module, there is no
            layer to change, or a layer is of a subclass whose own behaviour would be lost. ``model`` is then as it was.
    """
    how = schemes.scheme(scheme)
    if isinstance(how, Delta):
        delta = _LOG if delta is None else delta
    elif delta is not None:
        raise ValueError(f"delta: expected none, since scheme {how.name!r} has no such threshold")
    growth = delta if isinstance(delta, Growth) else None
    value = delta(1) if isinstance(delta, Growth) else 0.0 if delta is None else delta
    layers = _layers(model, skip)
    value = check_delta(value)
    for layer in layers.values():
        make_ternary(layer, value, growth, how)
    return model


def pack(net: nn.Module) -> nn.Module:
    """A copy of ``net`` for inference: every ternary layer holds its weight at 2 bits, and its zeros cost nothing.

    The outputs are those of ``net`` in eval mode up to float32 rounding. ``net`` keeps its latent weights and is not
    touched; sub-nets, hooks and layers that are not ternary are copied along.

    Returns:
        The copy, in eval mode.

    Raises:
        ValueError: ``net`` has no ternary layer, or a latent weight is NaN.
    """
    packed = copy.deepcopy(net).eval()
    layers = {name: layer for name, layer in packed.named_modules() if isinstance(layer, TernaryModule)}
    if not layers:
        raise ValueError("net: expected ternary layers (see dynkern.ternarize), found none")
    for name, layer in layers.items():
        try:
            make_packed(layer, layer.packed_weight())
        except ValueError as error:
            raise ValueError(f"net: cannot pack layer {name!r}: {error}") from None
    return packed


def pack_values(model: nn.Module, skip: Collection[str] = ()) -> nn.Module:
    """A copy of ``model`` for inference, whose weights are ternary values already: a checkpoint of another package.

    Of each output channel of a ``Conv2d`` or ``Linear`` the weights must be exactly -n, 0 and +p, with any n and p:
    what TWN, TTQ and their like leave when their quantised weights are saved. Nothing is rounded.

    Args:
        model: any module; it is not touched.
        skip: qualified names of modules that stay floats, with all they contain.

    Returns:
        The copy, in eval mode.

    Raises:
        ValueError, TypeError: a layer holds other values, ``skip`` names no module, or there is no layer to pack; the
            message names it.
    """
    packed = copy.deepcopy(model).eval()
    for name, layer in _layers(packed, skip).items():
        if isinstance(layer, TernaryModule):
            raise ValueError(f"model: layer {name!r} has a latent weight; use dynkern.pack")
        try:
            make_packed(layer, TernaryWeight.pack(layer.weight))
        except ValueError as error:
            raise ValueError(f"model: cannot pack layer {name!r}: {error}") from None
    return packed


def _layers(model: nn.Module, skip: Collection[str]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers of ``model`` that can be made ternary, but for those in ``skip``, by name."""
    if isinstance(skip, str):
        raise TypeError(f"skip: expected a collection of names, got the string {skip!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = sorted(set(skip) - set(modules))
    if unknown:
        raise ValueError(f"skip: {', '.join(map(repr, unknown))} is no module of the model")
    kept = {part for name in skip for part in modules[name].modules()}
    layers: dict[str, nn.Conv2d | nn.Linear] = {}
    for name, layer in modules.items():
        if layer in kept or not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        if type(layer) not in TERNARIZABLE or "weight" not in layer._parameters:
            kind = type(layer).__name__
            raise ValueError(f"model: {name or 'it'} is a {kind} with a behaviour of its own; name it in skip")
        layers[name] = layer
    if not layers:
        raise ValueError("model: expected a Conv2d or Linear to make ternary, found none")
    return layers
