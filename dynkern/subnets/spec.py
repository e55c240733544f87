"""What a sub-net is: a uniform width, or a channel set per layer."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from dynkern.files import replacing
from dynkern.nn.selection import Key

Channels = int | tuple[int, ...]


@dataclass(frozen=True)
class SubNet:
    """A non-uniform sub-net: the output channels that each layer keeps (equations 3 and 4 of Yang & Fan, ASP-DAC 2021).

    Attributes:
        name: what the sub-net is selected by.
        channels: for a layer's qualified name the output channels it keeps: a count (the first ones) or an index list.
            A layer that is not named keeps all, unless it is coupled (by a residual addition, say) with one that is
            named: then it keeps the same.

    Raises:
        ValueError, TypeError: an empty name, a count below one, an index list that is empty or repeats a channel.
    """

    name: str
    channels: Mapping[str, int | Sequence[int]]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a string, got {type(self.name).__name__}")
        if not self.name:
            raise ValueError("name: expected at least one character, got an empty string")
        if not isinstance(self.channels, Mapping):
            raise TypeError(f"channels: expected a mapping from layer names, got {type(self.channels).__name__}")
        kept = {layer: _channels(layer, value) for layer, value in self.channels.items()}
        object.__setattr__(self, "channels", kept)

    def to_json(self) -> str:
        """The sub-net as JSON text; :meth:`from_json` reads it back."""
        return json.dumps({"name": self.name, "channels": self.channels})

    @classmethod
    def from_json(cls, text: str) -> SubNet:
        """The sub-net that :meth:`to_json` wrote; ``ValueError`` for any other text."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"text: expected JSON, got {text[:40]!r}: {error}") from None
        if not isinstance(data, dict) or set(data) != {"name", "channels"}:
            raise ValueError(f"text: expected an object with 'name' and 'channels', got {text[:40]!r}")
        return cls(data["name"], data["channels"])


def write_subnets(subnets: Iterable[SubNet], path: str | os.PathLike[str]) -> None:
    """Write sub-nets to a JSON file, a list of what :meth:`SubNet.to_json` gives; whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(subnet.to_json() for subnet in subnets) + "\n]\n")


def read_subnets(path: str | os.PathLike[str]) -> list[SubNet]:
    """The sub-nets that :func:`write_subnets` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file of sub-nets, got {path}, which is none")
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise ValueError("expected a list")
        return [SubNet.from_json(json.dumps(entry)) for entry in entries]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as sub-nets: {error}") from error


def _channels(layer: Any, value: Any) -> Channels:
    if not isinstance(layer, str):
        raise TypeError(f"channels: expected layer names, got {layer!r}")
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        indices = tuple(_integer(layer, v) for v in value)
        if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
            raise ValueError(
                f"channels[{layer!r}]: expected different channels >= 0, at least one, got {list(indices)}"
            )
        return prefix(indices)
    count = _integer(layer, value)
    if count < 1:
        raise ValueError(f"channels[{layer!r}]: expected at least one channel, got {count}")
    return count


def _integer(layer: str, value: Any) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"channels[{layer!r}]: expected a count or a list of channels, got {value!r}")


def prefix(indices: tuple[int, ...]) -> Channels:
    """The same channels, as a count where they are the first ones in order."""
    return len(indices) if indices == tuple(range(len(indices))) else indices


def parse(subnets: Any) -> dict[Key, float | SubNet]:
    """``subnets`` of :func:`dynkern.slim`, checked, by key: a width's float or a sub-net's name."""
    if isinstance(subnets, (str, bytes, Mapping)) or not isinstance(subnets, Iterable):
        raise TypeError(f"subnets: expected widths and SubNets, got {subnets!r}")
    known: dict[Key, float | SubNet] = {}
    for entry in subnets:
        key: Key = entry.name if isinstance(entry, SubNet) else check_width(entry)
        if key in known:
            raise ValueError(f"subnets: expected every sub-net once, got {key!r} twice")
        known[key] = entry if isinstance(entry, SubNet) else float(key)
    if not known:
        raise ValueError("subnets: expected at least one sub-net, got none")
    return known


def check_width(width: Any) -> float:
    """``width`` as a float in (0, 1]."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"subnets: expected a width or a SubNet, got {width!r}")
    if not math.isfinite(width) or not 0 < width <= 1:
        raise ValueError(f"subnets: expected widths above 0 and at most 1, got {width}")
    return float(width)


def check_divisor(divisor: Any) -> int:
    """``divisor`` if it is an integer of at least one."""
    if isinstance(divisor, bool) or not isinstance(divisor, int):
        raise TypeError(f"divisor: expected an integer, got {divisor!r}")
    if divisor < 1:
        raise ValueError(f"divisor: expected at least 1, got {divisor}")
    return divisor


def uniform_count(channels: int, width: float, divisor: int) -> int:
    """How many of ``channels`` a uniform sub-net keeps (equation 1 of Yang & Fan, ASP-DAC 2021).

    ``width * channels`` rounded as by :func:`scaled`, at most ``channels``.
    """
    return min(channels, scaled(channels, width, divisor))


def scaled(channels: int, width: float, divisor: int = 1) -> int:
    """``width * channels`` rounded (half up) to a multiple of ``divisor``, at least one multiple."""
    # As fractions: 0.29 * 50 is 14.5, which float arithmetic would round down.
    return max(1, math.floor(Fraction(str(width)) * channels / divisor + Fraction(1, 2))) * divisor
