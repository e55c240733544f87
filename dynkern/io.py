"""Networks on disk: safetensors files that also say which layers are packed or ternary and which sub-nets there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

import dynkern
from dynkern import tensorfile
from dynkern.description import Description, twin
from dynkern.nn import schemes
from dynkern.nn.dynamic import device_of
from dynkern.nn.packed import PackedTernary, PackedTernaryConv2d, PackedTernaryLinear, make_packed
from dynkern.nn.ternary import make_ternary
from dynkern.ops.ternary_weight import TernaryWeight
from dynkern.ternary import coded
from dynkern.ternary.convert import TERNARIZABLE
from dynkern.ternary.growth import Growth

M = TypeVar("M", bound=nn.Module)
Codec = Literal["2bit", "entropy"]
_PACKABLE = (*TERNARIZABLE, PackedTernaryConv2d, PackedTernaryLinear)
_SHOWN = 5


def save(net: nn.Module, path: str | os.PathLike[str], *, codec: Codec = "2bit") -> None:
    """Write the ``state_dict`` of ``net`` to a safetensors file, and what :func:`load` must know to rebuild its layers.

    The file appears whole or not at all: an error or a crash leaves what was there before. Hooks, optimisers and the
    training flag are not saved; of a ternary network the growth of its threshold is, the epoch is not.

    Args:
        net: any module; it may be slim, and its layers ternary or packed. Tied tensors are stored once.
        path: the file, replaced if it exists.
        codec: how packed layers are written: ``"2bit"`` (2 bits a weight) or ``"entropy"``, within 5 % of the weights'
            entropy (see :mod:`dynkern.ternary.coded`), which takes the optional extra ``dynkern[entropy]`` here and
            where the file is loaded. The network that comes back is the same, bit for bit.

    Raises:
        ImportError: ``codec="entropy"``, and the coder library is not installed.
        ValueError: ``codec`` is neither of them, the state holds something else than dense tensors with values, or the
            sub-nets were not made by :func:`dynkern.slim`.
        TypeError: ``net`` is no module.
        OSError: the file cannot be written.
    """
    _check_module("net", net)
    if codec not in get_args(Codec):
        raise ValueError(f"codec: expected one of {', '.join(get_args(Codec))}, got {codec!r}")
    tensors, tied = tensorfile.distinct(net.state_dict())
    description = Description.of(net, tied)
    if codec == "entropy":
        weights = _packed(tensors, description)
        description = replace(description, coded=tensorfile.checksum(weights, {}))
        for name, shape in _shapes(weights, description).items():
            data = coded.encode(TernaryWeight(weights[name], shape))
            tensors[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else weights[name].new_empty(0)
    tensorfile.write(path, tensors, description.to_json(), dynkern.__version__)


def load(model: M, path: str | os.PathLike[str]) -> M:
    """Fill ``model`` from a file of :func:`save`, first making it slim and its layers ternary or packed as it says.

    Args:
        model: the plain architecture, or a network already converted as the one that was saved. It is changed in place,
            and only if all of the file fits. Devices and dtypes stay those of ``model``.
        path: the file. Nothing in it is executed.

    Returns:
        ``model``, in eval mode.

    Raises:
        ValueError: the file is damaged, of another kind or version, or does not fit ``model``; the message names the
            file and says what.
        ImportError: the file is entropy-coded, and the coder library is not installed.
        TypeError: ``model`` is no module.
        OSError: the file cannot be read.
    """
    _check_module("model", model)
    try:
        tensors, text = tensorfile.read(path)
        description = Description.from_json(text)
        if description.coded is not None:
            tensors = _decoded(tensors, description, model)
        state = {**tensors, **{name: _entry(tensors, other) for name, other in description.tied.items()}}
        # All that may fail is done to a copy first.
        _check(_convert(twin(model), state, description), state)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    _convert(model, state, description).load_state_dict(state)
    return model.eval()


def _packed(tensors: Mapping[str, Tensor], description: Description) -> dict[str, Tensor]:
    """The codes of packed layers; tied ones once, as in the file."""
    names = (f"{layer}.packed" for layer in description.packed)
    return {name: _entry(tensors, name) for name in names if name not in description.tied}


def _shapes(weights: Mapping[str, Tensor], description: Description) -> dict[str, list[int]]:
    return {name: description.packed[name.removesuffix(".packed")] for name in weights}


def _decoded(tensors: Mapping[str, Tensor], description: Description, model: nn.Module) -> dict[str, Tensor]:
    """The tensors with 2 bits a weight; ``ValueError`` if they are not those that were coded."""
    weights = _packed(tensors, description)
    for name, shape in _shapes(weights, description).items():
        layer = _layer(model, name.removesuffix(".packed"), _PACKABLE)
        fitting = layer.shape if isinstance(layer, PackedTernary) else tuple(layer.weight.shape)
        # Before a damaged shape makes room for more weights than there can be.
        if list(fitting) != shape:
            raise ValueError(f"{name}: expected weights of shape {tuple(fitting)}, got {shape}")
        try:
            if weights[name].dtype != torch.uint8:
                raise TypeError(f"coded: expected bytes, got {weights[name].dtype}")
            weights[name] = coded.decode(weights[name].numpy().tobytes(), shape)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from error
    if tensorfile.checksum(weights, {}) != description.coded:
        raise ValueError("damaged: the checksum of the decoded weights does not match")
    return {**tensors, **weights}


def _convert(net: M, state: Mapping[str, Tensor], description: Description) -> M:
    """Make ``net``, in place, of the layers that ``description`` names."""
    for name, slim in description.slim.items():
        slim.make(_module(net, name))
    for name, growth in description.ternary.items():
        layer = _layer(net, name, TERNARIZABLE)
        threshold = _entry(state, f"{name}.threshold")
        if threshold.dim():
            raise ValueError(f"{name}.threshold: expected a scalar, got shape {tuple(threshold.shape)}")
        scheme = schemes.from_dict(description.schemes.get(name, {"name": "delta"}))
        make_ternary(layer, float(threshold), None if growth is None else Growth(**growth), scheme)
    for name, shape in description.packed.items():
        layer = _layer(net, name, _PACKABLE)
        codes = _entry(state, f"{name}.packed")
        scales = (state.get(f"{name}.{part}") for part in ("scale", "scale_minus"))
        device = device_of(layer)
        try:
            # Copies, because what was read may be a view of the file.
            weight = TernaryWeight(
                codes.clone(), shape, *(None if scale is None else scale.clone() for scale in scales)
            )
            make_packed(layer, weight).to(device)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from error
    return net


def _check_module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a module, got {type(value).__name__}")


def _module(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the model has no module {name!r}") from None


def _layer(net: nn.Module, name: str, kinds: tuple[type[nn.Module], ...]) -> Any:
    layer = _module(net, name)
    if type(layer) not in kinds:
        raise ValueError(f"{name}: expected a Conv2d or Linear in the model, got {type(layer).__name__}")
    return layer


def _entry(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the tensor {name!r} is missing")
    return state[name]


def _check(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that ``state`` is all that ``net`` takes, so that loading it cannot fail half-way."""
    expected = net.state_dict(keep_vars=True)
    for problem, names in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ValueError(f"{problem} tensors: {', '.join(sorted(names)[:_SHOWN])}{more}")
    first: dict[int, str] = {}
    for name, tensor in expected.items():
        given = state[name]
        if given.shape != tensor.shape:
            raise ValueError(f"{name}: expected shape {tuple(tensor.shape)}, got {tuple(given.shape)}")
        if given.is_floating_point() != tensor.is_floating_point() or given.is_complex() != tensor.is_complex():
            raise ValueError(f"{name}: expected {tensor.dtype}, got {given.dtype}")
        if given.isnan().any():
            raise ValueError(f"{name}: holds NaN")
        if tensor.is_meta:
            raise ValueError(f"{name}: the model has no memory for it (meta device); call to_empty first")
        other = first.setdefault(id(tensor), name)
        if other != name and not torch.equal(given, state[other]):
            raise ValueError(f"{name}: tied to {other} in the model, but not in the file")
