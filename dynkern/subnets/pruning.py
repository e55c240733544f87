"""Which channels are left of a network while it is pruned, and what sub-net that is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.count import Count, count
from dynkern.subnets.coupled import Coupled
from dynkern.subnets.flow import Flow
from dynkern.subnets.groups import Segments
from dynkern.subnets.lasso import GroupLasso
from dynkern.subnets.spec import SubNet
from dynkern.subnets.walk import flow_of

log = logging.getLogger("dynkern")
THRESHOLD = 1e-3


class Pruning:
    """Takes channels out of ``model`` whose weights vanish; a channel that is out stays out.

    A channel that is out has zeros for the weights that make it, and for its biases and batch norms, so that the
    network computes what the sub-net without it does.

    Args:
        model: the plain network that ``lasso`` was made for.
        lasso: says which channels there are.
        example: an input (1, ...), to know the cost of each layer.
        threshold: a channel goes when its norm is at most so many times the mean of those that are left in its group.
        least: the share of its channels that each layer keeps in any case, 0 to 1; one channel at least.

    Attributes:
        alive: for each group, by its name, which channels are left: (size,) bool.
    """

    def __init__(
        self, model: nn.Module, lasso: GroupLasso, example: Tensor, threshold: float = THRESHOLD, least: float = 0.0
    ) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold: expected 0 or more and below 1, got {threshold}")
        if not 0 <= least <= 1:
            raise ValueError(f"least: expected 0 to 1, got {least}")
        self.lasso, self.threshold = lasso, threshold
        self._least = {g.name: max(1, math.ceil(least * g.size)) for g in lasso.groups}
        self.alive = {g.name: torch.ones(g.size, dtype=torch.bool) for g in lasso.groups}
        self._cost = Costs(model, lasso.groups, example)
        self._warned: set[str] = set()

    @torch.no_grad()
    def prune_(self) -> bool:
        """Take out what has vanished; True if that was anything. The strongest channels of a layer always stay."""
        found = False
        for group in self.lasso.groups:
            alive = self.alive[group.name]
            norms = group.norms().cpu()
            out = alive & (norms <= self.threshold * norms[alive].mean())
            if bool(out.any()):
                found |= self._take(group, out, norms)
        self.apply_()
        return found

    @torch.no_grad()
    def cut_(self, most: float, kind: str = "macs") -> None:
        """Take out the weakest channels, by norm over the mean of their layer, until the network is small enough.

        Args:
            most: the largest cost.
            kind: ``"macs"`` or ``"weights"``.

        Raises:
            ValueError: it cannot become so small.
        """
        order = []
        for group in self.lasso.groups:
            alive, norms = self.alive[group.name], group.norms().cpu()
            shares = norms / norms[alive].mean().clamp(min=1e-30)
            order += [(float(shares[i]), group.name, int(i)) for i in alive.nonzero()]
        for _, name, channel in sorted(order):
            if self.cost(kind) <= most:
                break
            if int(self.alive[name].sum()) > self._least[name]:
                self.alive[name][channel] = False
        if self.cost(kind) > most:
            raise ValueError(
                f"most: expected at least {self.cost(kind):g} {kind}, what no layer can lose, got {most:g}"
            )
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Make all numbers of the channels that are out zero; call it after each step of an optimiser."""
        for group in self.lasso.groups:
            alive = self.alive[group.name]
            if not bool(alive.all()):
                for place in (*group.rows, *(v for v in group.vectors if v.name in ("weight", "bias"))):
                    numbers = place.of(group.size)
                    numbers.mul_(alive.to(numbers).view(-1, *[1] * (numbers.dim() - 1)))

    def cost(self, kind: str = "macs") -> float:
        """Multiply-accumulates (``"macs"``) or convolution and linear weights (``"weights"``) of what is left."""
        return self._cost(kind, self.alive)

    def subnet(self, name: str) -> SubNet:
        """What is left, as a sub-net."""
        kept = {group: alive.nonzero().flatten().tolist() for group, alive in self.alive.items()}
        return SubNet(name, kept)

    def state_dict(self) -> dict[str, Any]:
        """Which channels are left."""
        return {"alive": {name: alive.clone() for name, alive in self.alive.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        sizes = {name: alive.shape for name, alive in state["alive"].items()}
        if sizes != {name: alive.shape for name, alive in self.alive.items()}:
            raise ValueError("state: expected the channels of this network, got those of another")
        self.alive = {name: alive.clone() for name, alive in state["alive"].items()}

    def _take(self, group: Coupled, out: Tensor, norms: Tensor) -> bool:
        alive, least = self.alive[group.name], self._least[group.name]
        left = alive & ~out
        if int(left.sum()) < least:
            strongest = torch.where(alive, norms, -torch.inf).topk(min(least, int(alive.sum()))).indices
            left = torch.zeros_like(alive).index_fill_(0, strongest, True)
            if least == 1 and group.name not in self._warned:
                self._warned.add(group.name)
                log.warning("%s: every channel would be pruned; the strongest stays", ", ".join(group.layers))
        found = not torch.equal(left, alive)
        self.alive[group.name] = left
        return found


class Costs:
    """What a network costs with some of its channels.

    Args:
        model: the whole network.
        groups: those of its groups of channels that may lose some.
        example: an input (1, ...).
    """

    def __init__(self, model: nn.Module, groups: list[Coupled], example: Tensor) -> None:
        flow = flow_of(model)
        found = count(model, example)
        if not isinstance(found, Count):
            raise ValueError("model: expected a plain network, got a slim one")
        owner = {layer: g.name for g in groups for layer in g.layers}
        self._layers: list[tuple[Any, Callable[[Mapping[str, Tensor]], float]]] = []
        for layer in found.layers:
            if layer.name in flow.layers:
                ports = flow.layers[layer.name]
                made = _share(flow, ports.outputs, owner)
                read = _share(flow, ports.inputs, owner)
                depthwise = getattr(model.get_submodule(layer.name), "groups", 1) > 1
                self._layers.append((layer, made if depthwise else _product(made, read)))
            else:
                self._layers.append((layer, lambda alive: 1.0))

    def __call__(self, kind: str, alive: Mapping[str, Tensor]) -> float:
        """Of the channels that are ``alive``: ``"macs"`` or ``"weights"``."""
        if kind not in ("macs", "weights"):
            raise ValueError(f"kind: expected 'macs' or 'weights', got {kind!r}")
        return sum(getattr(layer, kind) * share(alive) for layer, share in self._layers)


def _share(flow: Flow, segments: Segments, owner: Mapping[str, str]) -> Callable[[Mapping[str, Tensor]], float]:
    """The part of a channel axis that is alive, 0 to 1."""
    parts: list[tuple[str | None, int, int]] = []
    for segment in flow.groups.parts(segments):
        names = [owner[layer] for layer in flow.groups.owners(segment.group) if layer in owner]
        size, repeat = flow.groups.size(segment.group) or 0, flow.groups.repeat(segment) or 1
        parts.append((names[0] if names else None, size, repeat))
    total = sum(size * repeat for _, size, repeat in parts)

    def share(alive: Mapping[str, Tensor]) -> float:
        return sum((size if name is None else int(alive[name].sum())) * repeat for name, size, repeat in parts) / total

    return share


def _product(
    a: Callable[[Mapping[str, Tensor]], float], b: Callable[[Mapping[str, Tensor]], float]
) -> Callable[[Mapping[str, Tensor]], float]:
    return lambda alive: a(alive) * b(alive)
