"""The networks by name, with what they take and give: for the command line and the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from dynkern.models import binary, cifar, imagenet, mobile


@dataclass(frozen=True)
class Model:
    """One network.

    Attributes:
        build: makes it, from the options of the function of that name.
        input_shape: channels, height and width of one input.
        num_classes: outputs by default.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    num_classes: int


_CIFAR = ((3, 32, 32), 10)
_IMAGENET = ((3, 224, 224), 1000)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "resnet20": Model(cifar.resnet20, *_CIFAR),
        "resnet32": Model(cifar.resnet32, *_CIFAR),
        "resnet44": Model(cifar.resnet44, *_CIFAR),
        "resnet56": Model(cifar.resnet56, *_CIFAR),
        "resnet18": Model(imagenet.resnet18, *_IMAGENET),
        "resnet50": Model(imagenet.resnet50, *_IMAGENET),
        "mobilenetv2": Model(mobile.mobilenetv2, *_IMAGENET),
        "resnet_binary": Model(binary.resnet_binary, *_CIFAR),
    }
)


def names() -> list[str]:
    """The names that :func:`build` takes."""
    return list(MODELS)


def build(name: str, **options: Any) -> nn.Module:
    """The network called ``name``, with ``options`` as its function takes them.

    Raises:
        ValueError: there is no network of that name, or an option is out of range.
        TypeError: the network has no such option.
    """
    if name not in MODELS:
        raise ValueError(f"name: expected one of {names()}, got {name!r}")
    return MODELS[name].build(**options)
