"""What a file must say about a network beside its tensors: sub-nets, ternary and packed layers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from torch import nn

from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.packed import PackedTernary
from dynkern.nn.selection import Key, Selection, Slice
from dynkern.nn.ternary import TernaryModule
from dynkern.subnets import SubNet, revert, slim
from dynkern.subnets.switch import ROOT
from dynkern.ternary.growth import Growth

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Slim:
    """The arguments of :func:`dynkern.slim`, and the sub-net that is selected.

    Attributes:
        subnets: widths, and :class:`~dynkern.SubNet` as JSON.
    """

    subnets: list[float | str]
    divisor: int
    current: Key

    @classmethod
    def of(cls, net: nn.Module) -> Slim:
        """That of a slim network. Only the outcome is kept there, so the arguments that lead to it are found anew."""
        selection: Selection = getattr(net, ROOT)
        outcome = _slices(net, selection)
        specs = [key if isinstance(key, float) else SubNet(key, _channels(net, outcome, key)) for key in selection.keys]
        plain = revert(twin(net))
        for divisor in _divisors(net, outcome):
            slim(plain, specs, divisor)
            if _entries(outcome) == _entries(_slices(plain, getattr(plain, ROOT))):
                texts = [spec.to_json() if isinstance(spec, SubNet) else spec for spec in specs]
                return cls(texts, divisor, selection.current)
            revert(plain)
        raise ValueError("net: its sub-nets are not what dynkern.slim makes of it, so a file cannot describe them")

    def make(self, net: nn.Module) -> None:
        """Make ``net`` slim, or check that it is slim in this way; then select the sub-net."""
        if ROOT not in vars(net):
            slim(net, [SubNet.from_json(s) if isinstance(s, str) else s for s in self.subnets], self.divisor)
        else:
            known = Slim.of(net)
            if (known.subnets, known.divisor) != (self.subnets, self.divisor):
                raise ValueError("the model is slim already, with other sub-nets than those of the file")
        getattr(net, ROOT).select(self.current)


@dataclass(frozen=True)
class Description:
    """All that is to be known of a network.

    Attributes:
        slim: the networks within it that are slim, by name; that of the network itself is "".
        ternary: of each layer with latent weights how its threshold grows, as the arguments of
            :class:`~dynkern.ternary.Growth`; None for a fixed threshold.
        packed: the weight's shape of each packed layer.
        tied: names of tensors that are stored under another name, to that name.
    """

    slim: dict[str, Slim] = field(default_factory=dict)
    ternary: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    packed: dict[str, list[int]] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, net: nn.Module, tied: dict[str, str]) -> Description:
        """That of ``net``."""
        modules = dict(net.named_modules(remove_duplicate=False))
        packed = {name: list(layer.shape) for name, layer in modules.items() if isinstance(layer, PackedTernary)}
        latent = {name: layer.growth for name, layer in modules.items() if isinstance(layer, TernaryModule)}
        ternary = {name: asdict(growth) if isinstance(growth, Growth) else None for name, growth in latent.items()}
        roots = {name: Slim.of(module) for name, module in net.named_modules() if ROOT in vars(module)}
        return cls(roots, ternary, packed, tied)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """That which :meth:`to_json` wrote; ``ValueError`` for any other text."""
        try:
            data = json.loads(text)
            slims = {name: Slim(**entry) for name, entry in data.pop("slim").items()}
            new = cls(slim=slims, **data)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its description of the net is not understood: {error}") from None
        if not all(isinstance(part, dict) for part in (new.ternary, new.packed, new.tied)):
            raise ValueError("its description of the net is not understood")
        return new


def twin(net: M) -> M:
    """A copy of ``net`` that shares its parameters and buffers: only the modules are new."""
    return copy.deepcopy(net, {id(t): t for t in (*net.parameters(), *net.buffers())})


def _slices(net: nn.Module, selection: Selection) -> dict[str, dict[Key, Slice]]:
    modules = net.named_modules()
    return {n: dict(m.slices) for n, m in modules if isinstance(m, SlicedModule) and m.selection is selection}


def _channels(net: nn.Module, outcome: dict[str, dict[Key, Slice]], key: Key) -> dict[str, Any]:
    """The output channels of each layer that makes channels; a depthwise one passes its inputs on."""
    made = {name: s[key] for name, s in outcome.items() if getattr(net.get_submodule(name), "groups", 1) == 1}
    return {name: s.outputs if s.out_index is None else s.out_index.tolist() for name, s in made.items()}


def _divisors(net: nn.Module, outcome: dict[str, dict[Key, Slice]]) -> Iterator[int]:
    """What may have been the divisor of the uniform widths: it divides all that are narrower than their layer."""
    common = 0
    for name, slices in outcome.items():
        layer: Any = net.get_submodule(name)
        full = layer.out_features if hasattr(layer, "out_features") else layer.out_channels
        common = math.gcd(common, *(s.outputs for k, s in slices.items() if isinstance(k, float) and s.outputs < full))
    yield from (d for d in range(1, common + 1) if common % d == 0) if common else (1,)


def _entries(outcome: dict[str, dict[Key, Slice]]) -> Any:
    """As numbers alone, to be compared."""
    return {
        name: {
            key: (s.inputs, s.outputs, *(None if i is None else i.tolist() for i in (s.in_index, s.out_index)))
            for key, s in slices.items()
        }
        for name, slices in outcome.items()
    }
