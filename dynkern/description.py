"""What a file must say about a network beside its tensors: sub-nets, ternary and packed layers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from torch import nn

from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.packed import PackedTernary
from dynkern.nn.schemes import Delta
from dynkern.nn.selection import Key, Selection
from dynkern.nn.ternary import TernaryModule
from dynkern.subnets import SubNet, made, revert, slim
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
        """That of a slim network; ``ValueError`` if it is no longer as :func:`dynkern.slim` left it."""
        subnets, divisor = made(net)
        if not _is_slim_by(net, subnets, divisor):
            raise ValueError("net: its sub-nets are not what dynkern.slim makes of it, so a file cannot describe them")
        texts = [spec.to_json() if isinstance(spec, SubNet) else spec for spec in subnets]
        return cls(texts, divisor, getattr(net, ROOT).current)

    def make(self, net: nn.Module) -> None:
        """Make ``net`` slim, or check that it is slim in this way; then select the sub-net."""
        subnets = [SubNet.from_json(s) if isinstance(s, str) else s for s in self.subnets]
        if ROOT not in vars(net):
            slim(net, subnets, self.divisor)
        elif not _is_slim_by(net, subnets, self.divisor):
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
        schemes: of each layer with latent weights whose ternariser is not ``Delta``, that ternariser.
        coded: the checksum of the packed weights, if they are entropy-coded in the file.
    """

    slim: dict[str, Slim] = field(default_factory=dict)
    ternary: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    packed: dict[str, list[int]] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    schemes: dict[str, dict[str, Any]] = field(default_factory=dict)
    coded: str | None = None

    @classmethod
    def of(cls, net: nn.Module, tied: dict[str, str]) -> Description:
        """That of ``net``."""
        modules = dict(net.named_modules(remove_duplicate=False))
        packed = {name: list(layer.shape) for name, layer in modules.items() if isinstance(layer, PackedTernary)}
        latent = {name: layer for name, layer in modules.items() if isinstance(layer, TernaryModule)}
        growths = {name: layer.growth for name, layer in latent.items()}
        ternary = {name: asdict(growth) if isinstance(growth, Growth) else None for name, growth in growths.items()}
        others = {n: layer.scheme.to_dict() for n, layer in latent.items() if not isinstance(layer.scheme, Delta)}
        roots = {name: Slim.of(module) for name, module in net.named_modules() if ROOT in vars(module)}
        return cls(roots, ternary, packed, tied, others)

    def to_json(self) -> str:
        """As JSON text."""
        data = asdict(self)
        if not self.schemes:  # the file is then as versions without them write and read it
            del data["schemes"]
        if self.coded is None:  # the file is then as versions without codecs write and read it
            del data["coded"]
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """That which :meth:`to_json` wrote; ``ValueError`` for any other text."""
        try:
            data = json.loads(text)
            slims = {name: Slim(**entry) for name, entry in data.pop("slim").items()}
            new = cls(slim=slims, **data)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its description of the net is not understood: {error}") from None
        parts = (new.ternary, new.schemes, new.packed, new.tied)
        if not all(isinstance(part, dict) for part in parts) or not isinstance(new.coded, str | None):
            raise ValueError("its description of the net is not understood")
        return new


def twin(net: M) -> M:
    """A copy of ``net`` that shares its parameters and buffers: only the modules are new."""
    return copy.deepcopy(net, {id(t): t for t in (*net.parameters(), *net.buffers())})


def _is_slim_by(net: nn.Module, subnets: Iterable[float | SubNet], divisor: int) -> bool:
    """True if the sub-nets of ``net`` have the channels that :func:`dynkern.slim` chooses for these arguments."""
    return _channels(slim(revert(twin(net)), subnets, divisor)) == _channels(net)


def _channels(net: nn.Module) -> Any:
    """The sub-nets and what each runs of every layer, as numbers alone, to be compared."""
    selection: Selection = getattr(net, ROOT)
    return selection.keys, {
        name: {
            key: (s.inputs, s.outputs, *(None if i is None else i.tolist() for i in (s.in_index, s.out_index)))
            for key, s in layer.slices.items()
        }
        for name, layer in net.named_modules()
        if isinstance(layer, SlicedModule) and layer.selection is selection
    }
