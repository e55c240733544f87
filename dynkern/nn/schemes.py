"""The ternarisers: what turns a latent weight into at most three values, one class each, all with one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dynkern.ops.straight_through import straight_through, ternary_values, two_levels

# Two learned levels of a layer, that of its +1 and that of its -1.
LEVELS = ("plus", "minus")


@dataclass(frozen=True)
class Scheme:
    """One ternariser; a layer asks it for signs in {-1, 0, +1} and for the two levels that they stand for.

    Attributes:
        name: what :data:`SCHEMES` has it under.
        clips: the latent weights belong into [-1, 1] (:func:`dynkern.ternary.clamp_` keeps them there), and the
            gradient of one outside is zero (equation 2 of Dordoni et al., MLSP 2024).
        learns: the layer has parameters ``plus`` and ``minus``, its two levels.
    """

    name: ClassVar[str]
    clips: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def signs(self, layer: Any) -> Tensor:
        """{-1, 0, +1} of the shape and dtype of ``layer.weight``, without gradient; NaN where the weight is NaN."""
        raise NotImplementedError(f"{type(self).__name__}.signs")

    def levels(self, layer: Any, signs: Tensor) -> tuple[Tensor, Tensor] | None:
        """What +1 and -1 stand for, two scalars (the second one without its sign); None for ones."""
        return (layer.plus, layer.minus) if self.learns else None

    def values(self, layer: Any) -> Tensor:
        """The weight that ``layer`` multiplies with, differentiable."""
        with torch.no_grad():
            signs = self.signs(layer)
            levels = None if self.learns else self.levels(layer, signs)
        levels = self.levels(layer, signs) if self.learns else levels
        if levels is None:
            return straight_through(layer.weight, signs)
        return two_levels(layer.weight, signs, *levels, self.learns)

    def equip(self, layer: Any) -> None:
        """Give ``layer`` the parameters that this scheme learns, and take from it those that it does not."""
        for name in LEVELS:
            layer._parameters.pop(name, None)
        if self.learns:
            for name, value in zip(LEVELS, _means(layer.weight, self.start(layer.weight)), strict=True):
                layer.register_parameter(name, nn.Parameter(value.clone()))

    def start(self, weight: Tensor) -> Tensor:
        """The signs whose mean magnitudes a learned level starts from."""
        raise NotImplementedError(f"{type(self).__name__}.start")

    def to_dict(self) -> dict[str, Any]:
        """Its name and arguments, for :func:`from_dict`."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Delta(Scheme):
    """Zero up to the layer's threshold, which may grow; else +-1 (equation 5 of Dordoni et al., MLSP 2024)."""

    name = "delta"
    clips = True

    def signs(self, layer: Any) -> Tensor:
        return ternary_values(layer.weight, layer.threshold)


@dataclass(frozen=True)
class Binary(Scheme):
    """+1 from zero on, else -1; no zeros (Courbariaux et al., 2016: the binary network of Dordoni et al., table 2)."""

    name = "binary"
    clips = True

    def signs(self, layer: Any) -> Tensor:
        weight = layer.weight
        return torch.where(weight >= 0, torch.ones_like(weight), torch.where(weight < 0, -1, weight).to(weight.dtype))


@dataclass(frozen=True)
class TWN(Scheme):
    """Ternary weight networks (Li & Liu, 2016): zero up to ``factor`` times the layer's mean magnitude.

    The others are +- the mean magnitude of those that are left, which is nearest to the latent weights in the least
    squares' sense; the gradient is the identity's.

    Args:
        factor: at least 0; the paper's is 0.7.
    """

    factor: float = 0.7

    name = "twn"

    def __post_init__(self) -> None:
        _check("factor", self.factor)

    def signs(self, layer: Any) -> Tensor:
        return ternary_values(layer.weight, self.factor * layer.weight.abs().mean())

    def levels(self, layer: Any, signs: Tensor) -> tuple[Tensor, Tensor]:
        kept = signs.abs()
        # Without any weight left the level is never read; one keeps it finite.
        mean = (layer.weight.abs() * kept).sum() / kept.sum().clamp(min=1)
        mean = torch.where(kept.sum() == 0, torch.ones_like(mean), mean)
        return mean, mean


@dataclass(frozen=True)
class TTQ(Scheme):
    """Trained ternary quantization (Zhu et al., ICLR 2017): zero up to ``t`` times the layer's largest magnitude.

    The others are the layer's parameters ``plus`` and ``-minus``, which are learned (equation 3 of Dordoni et al.,
    MLSP 2024; gradients: equations 7 and 8 of Zhu et al.). They start as the mean magnitudes of what they stand for.

    Args:
        t: 0 <= t < 1; the paper's is 0.05.
    """

    t: float = 0.05

    name = "ttq"
    learns = True

    def __post_init__(self) -> None:
        _check("t", self.t, below=1.0)

    def signs(self, layer: Any) -> Tensor:
        return self.start(layer.weight)

    def start(self, weight: Tensor) -> Tensor:
        return ternary_values(weight, self.t * weight.abs().max())


@dataclass(frozen=True)
class EC2T(Scheme):
    """Entropy-constrained trained ternarization (Marban et al., CVPR Workshops 2020).

    Each weight takes the centroid c of ``-minus``, 0 and ``plus`` with the least cost ``(weight - c)^2 - lambda log2
    P_c`` (equation 4 of Dordoni et al., MLSP 2024), P_c being the share of the weights whose nearest centroid is c:
    the more frequent one (zero, mostly) is preferred. In each layer ``lambda = lam minus plus``, so that ``lam`` has no
    unit. The centroids are parameters, learned as TTQ's.

    Args:
        lam: at least 0; with 0 each weight takes the nearest centroid.
    """

    lam: float = 0.1

    name = "ec2t"
    learns = True

    def __post_init__(self) -> None:
        _check("lam", self.lam)

    def signs(self, layer: Any) -> Tensor:
        weight = layer.weight
        # The levels are magnitudes; should training drive one to zero, it stands for no weight.
        plus, minus = (getattr(layer, name).clamp(min=torch.finfo(weight.dtype).tiny) for name in LEVELS)
        nearest = _between(weight, plus / 2, minus / 2)
        if self.lam == 0:
            return nearest
        shares = torch.stack([(nearest == c).sum() for c in (-1, 0, 1)]) / weight.numel()
        # A centroid that no weight is nearest to would never be taken again: half a weight's share leaves it a chance.
        bits = -torch.log2(shares.clamp(min=0.5 / weight.numel()))
        # (w - p)^2 + lambda bits_p < w^2 + lambda bits_0, solved for w.
        price = self.lam * plus * minus
        above = plus / 2 + price * (bits[2] - bits[1]) / (2 * plus)
        below = minus / 2 + price * (bits[0] - bits[1]) / (2 * minus)
        return _between(weight, above.clamp(min=0), below.clamp(min=0))

    def start(self, weight: Tensor) -> Tensor:
        return ternary_values(weight, 0.7 * weight.abs().mean())


SCHEMES: Mapping[str, type[Scheme]] = MappingProxyType({c.name: c for c in (Delta, TWN, TTQ, EC2T, Binary)})


def scheme(given: str | Scheme) -> Scheme:
    """``given``, or the one of that name with its defaults.

    Raises:
        ValueError, TypeError: it is no scheme, or there is none of that name.
    """
    if isinstance(given, Scheme) and type(given) is not Scheme:
        return given
    if not isinstance(given, str):
        raise TypeError(f"scheme: expected a name or a Scheme, got {type(given).__name__}")
    if given not in SCHEMES:
        raise ValueError(f"scheme: expected one of {list(SCHEMES)}, got {given!r}")
    return SCHEMES[given]()


def from_dict(data: Mapping[str, Any]) -> Scheme:
    """What :meth:`Scheme.to_dict` described; ``ValueError`` or ``TypeError`` for anything else."""
    arguments = dict(data)
    cls = type(scheme(arguments.pop("name", "")))
    unknown = set(arguments) - {field.name for field in fields(cls)}
    if unknown:
        raise ValueError(f"scheme: {cls.name!r} has no {', '.join(map(repr, sorted(unknown)))}")
    return cls(**arguments)


def _between(weight: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """+1 above ``above``, -1 below ``-below``, else 0; NaN stays NaN."""
    positive, negative = weight > above, weight < -below
    return torch.where(positive, 1.0, torch.where(negative, -1.0, weight.abs().clamp(max=1) * 0)).to(weight.dtype)


def _means(weight: Tensor, signs: Tensor) -> list[Tensor]:
    """The mean magnitude of the weights under +1 and of those under -1; one where there are none."""
    weight = weight.detach()
    parts = [weight[signs > 0], -weight[signs < 0]]
    return [part.mean() if len(part) else torch.ones_like(weight.flatten()[0]) for part in parts]


def _check(name: str, value: float, below: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= value < below:
        raise ValueError(f"{name}: expected 0 <= {name} < {below:g}, got {value}")
