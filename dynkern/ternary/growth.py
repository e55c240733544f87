"""How the threshold of ternarisation grows over training (equations 6 and 7 of Dordoni et al., MLSP 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

# With the defaults delta0 = 0.1 and cap = 0.9, delta reaches the cap when m f(epoch) = 8. The paper gives m for "log"
# alone (its figure 1). Our choices for the others: linear and square reach the cap at the paper's last epoch, 500; exp,
# which the paper describes as rising early, at epoch 50.
_DEFAULT_M = {"log": 1.9, "linear": 8 / 500, "square": 8 / 500**2, "exp": 8 * math.exp(-50), "fixed": 0.0}
_F: dict[str, Callable[[int], float]] = {
    "log": math.log,
    "linear": float,
    "square": lambda epoch: float(epoch) ** 2,
    "fixed": lambda epoch: 0.0,
}
_LAST_EPOCH = 10**9


@dataclass(frozen=True)
class Growth:
    """``delta = min(delta0 + delta0 * m * f(epoch), cap)``, epochs counted from 1.

    Args:
        regime: f. ``"log"`` is ln(epoch), ``"linear"`` epoch, ``"square"`` epoch^2, ``"exp"`` e^epoch, ``"fixed"`` 0.
            f(0) = 0 for all of them: delta before training is delta0.
        delta0: the threshold that training starts with, 0 <= delta0 <= cap.
        m: how fast delta grows, at least 0. By default 1.9 for log (the paper's), and our choices for the others:
            8 / 500 for linear and 8 / 500^2 for square (the cap is reached at epoch 500), 8 / e^50 for exp (epoch 50).
        cap: the threshold that is never exceeded, below 1. With 1 every weight, clipped to [-1, 1], would become zero.

    Raises:
        ValueError, TypeError: an argument is not a number or out of range; the message names it.
    """

    regime: str = "log"
    delta0: float = 0.1
    m: float | None = None
    cap: float = 0.9

    def __post_init__(self) -> None:
        if self.regime not in _DEFAULT_M:
            raise ValueError(f"regime: expected one of {list(_DEFAULT_M)}, got {self.regime!r}")
        if self.m is None:
            object.__setattr__(self, "m", _DEFAULT_M[self.regime])
        for name in ("delta0", "m", "cap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
            object.__setattr__(self, name, float(value))
        if not 0 <= self.cap < 1:
            raise ValueError(f"cap: expected 0 <= cap < 1, got {self.cap}")
        if not 0 <= self.delta0 <= self.cap:
            raise ValueError(f"delta0: expected 0 <= delta0 <= cap = {self.cap}, got {self.delta0}")
        if not 0 <= self._m < math.inf:
            raise ValueError(f"m: expected a finite number of at least 0, got {self.m}")

    @classmethod
    def reaching(cls, regime: str, epoch: int, delta0: float = 0.1, cap: float = 0.9) -> Growth:
        """The growth that reaches ``cap`` in ``epoch``: for a training of another length than the paper's 500 epochs.

        The paper's own, m = 1.9 for log, reaches it in epoch 68.

        Raises:
            ValueError, TypeError: ``regime`` does not grow, or another argument is out of range. ``epoch`` is at least
                1, for log 2; and at most 700 for exp, where m would vanish.
        """
        if regime == "fixed":
            raise ValueError("regime: expected one that grows, got 'fixed'")
        start = cls(regime, delta0, 0.0, cap)
        _check("epoch", epoch)
        least, most = 2 if regime == "log" else 1, 700 if regime == "exp" else _LAST_EPOCH
        if not least <= epoch <= most:
            raise ValueError(f"epoch: expected {least} to {most} for {regime!r}, got {epoch}")
        if start.delta0 == 0:
            raise ValueError("delta0: expected above 0, since delta grows in proportion to it")
        rise = start.cap / start.delta0 - 1
        m = rise * math.exp(-epoch) if regime == "exp" else rise / _F[regime](epoch)
        return cls(regime, delta0, m, cap)

    @property
    def _m(self) -> float:
        return 0.0 if self.m is None else self.m

    def __call__(self, epoch: int) -> float:
        """Delta in ``epoch``, 1 being the first one; 0 stands for the state before training.

        Raises:
            ValueError, TypeError: ``epoch`` is not an integer from 0 to 10^9.
        """
        _check("epoch", epoch)
        if epoch == 0 or self._m == 0 or self.delta0 == 0:
            return self.delta0
        if self.regime == "exp":
            # e^epoch overflows at epoch 710; its product with delta0 and m need not, and e^0 is past any cap.
            rise = math.exp(min(0.0, epoch + math.log(self._m) + math.log(self.delta0)))
        else:
            rise = self.delta0 * self._m * _F[self.regime](int(epoch))
        return min(self.delta0 + rise, self.cap)

    def table(self, epochs: int) -> list[float]:
        """Delta in the epochs 1 to ``epochs``; entry 0 is epoch 1. Raises as a call does."""
        _check("epochs", epochs)
        return [self(epoch) for epoch in range(1, epochs + 1)]


def _check(name: str, epoch: int) -> None:
    if isinstance(epoch, bool) or not isinstance(epoch, Integral):
        raise TypeError(f"{name}: expected an integer, got {type(epoch).__name__}")
    if not 0 <= epoch <= _LAST_EPOCH:
        raise ValueError(f"{name}: expected 0 to {_LAST_EPOCH}, got {epoch}")
