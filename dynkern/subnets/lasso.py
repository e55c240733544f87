"""Group lasso, plain and clipped: the penalty that makes channels vanish."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynkern.subnets.coupled import Coupled, coupled

SCALES = (None, "sqrt")


class GroupLasso:
    """``strength * sum_l sum_i min(||W_l,i||, tau_l)``, ``tau_l = beta * mean_i ||W_l,i||`` (equation 2 of Yang & Fan).

    A group ``W_l,i`` is all weights that make output channel i of layer l, and of those layers that must keep the same
    channels as l, since their results are added. ``tau_l`` is recomputed at each call and is a constant for the
    gradient: groups above it get none. Channels that were pruned do not count in the mean. Without ``beta`` nothing is
    clipped: the group lasso of Wen et al., NIPS 2016.

    Args:
        model: a plain network that :func:`dynkern.slim` takes.
        strength: lambda, 0 or more.
        beta: where the penalty is clipped, above 0 and below 1; None for the plain group lasso.
        scale: ``"sqrt"`` multiplies the norm of each group by the square root of its size.
        keep: names of layers whose channels, and those coupled to them, have no penalty.

    Raises:
        ValueError: a number is out of range, ``keep`` names no layer, or ``model`` cannot be made slim.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        beta: float | None = None,
        *,
        scale: str | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength: expected lambda of 0 or more, got {strength}")
        if beta is not None and not 0 < beta < 1:
            raise ValueError(f"beta: expected a number above 0 and below 1, or None, got {beta}")
        if scale not in SCALES:
            raise ValueError(f"scale: expected one of {list(SCALES)}, got {scale!r}")
        self.strength, self.beta, self.scale = strength, beta, scale
        groups = coupled(model)
        layers = {layer for group in groups for layer in group.layers}
        unknown = sorted(set(keep) - layers)
        if unknown:
            raise ValueError(f"keep: expected some of {sorted(layers)}, got {unknown}")
        # Where channels are padded the position of a channel says what it is added to: no other may take its place.
        self.groups = [g for g in groups if g.fixed is None and not set(keep) & set(g.layers)]
        if not self.groups:
            raise ValueError("model: expected channels that may be pruned, found none")

    def __call__(self, alive: Mapping[str, Tensor] | None = None) -> Tensor:
        """The penalty, a differentiable number; ``alive`` tells which channels of each group are not pruned."""
        total = torch.zeros(())
        for group in self.groups:
            norms = group.norms()
            tau = self._tau(group, norms, alive)
            clipped = norms if tau is None else torch.minimum(norms, tau)
            total = total.to(norms.device) + self._factor(group) * clipped.sum()
        return self.strength * total

    @torch.no_grad()
    def shrink_(self, rate: float, alive: Mapping[str, Tensor] | None = None) -> None:
        """The penalty's proximal step at learning rate ``rate``, in place: makes norms smaller, and small ones zero.

        ``W <- W max(0, 1 - rate * strength / ||W||)`` for the groups below ``tau``. Unlike steps along the gradient,
        which swing around zero, it gives exact zeros.
        """
        for group in self.groups:
            norms = group.norms()
            tau = self._tau(group, norms, alive)
            step = rate * self.strength * self._factor(group)
            factor = (1 - step / norms.clamp(min=1e-30)).clamp(min=0)
            if tau is not None:
                factor = torch.where(norms < tau, factor, torch.ones_like(factor))
            for place in group.rows:
                weights = place.of(group.size)
                weights.mul_(factor.view(-1, *[1] * (weights.dim() - 1)))

    def _tau(self, group: Coupled, norms: Tensor, alive: Mapping[str, Tensor] | None) -> Tensor | None:
        if self.beta is None:
            return None
        known = norms.detach()
        return self.beta * (known if alive is None else known[alive[group.name].to(known.device)]).mean()

    def _factor(self, group: Coupled) -> float:
        if self.scale is None:
            return 1.0
        return math.sqrt(sum(place.of(group.size)[0].numel() for place in group.rows))
