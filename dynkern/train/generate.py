"""Non-uniform sub-nets by pruning while training (equations 3 and 4 of Yang & Fan, ASP-DAC 2021)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.data import Stream
from dynkern.subnets.lasso import GroupLasso
from dynkern.subnets.pruning import THRESHOLD, Pruning
from dynkern.subnets.spec import SubNet
from dynkern.train.loop import History, Hooks, fit
from dynkern.train.progress import Progress
from dynkern.train.recipe import Recipe
from dynkern.train.steps import LossStep, classify

KINDS = ("macs", "weights")


@dataclass(frozen=True)
class Snapshot:
    """A sub-net to be taken during a run.

    Attributes:
        name: of the sub-net.
        epoch: taken at the end of this epoch, from 1; or
        size: taken as soon as what is left costs no more than this.
    """

    name: str
    epoch: int | None = None
    size: float | None = None

    def __post_init__(self) -> None:
        if (self.epoch is None) == (self.size is None):
            raise ValueError(f"snapshot {self.name!r}: expected an epoch or a size, got {self.epoch} and {self.size}")
        if self.epoch is not None and self.epoch < 1:
            raise ValueError(f"snapshot {self.name!r}: expected an epoch of 1 or more, got {self.epoch}")
        if self.size is not None and not self.size > 0:
            raise ValueError(f"snapshot {self.name!r}: expected a size above 0, got {self.size}")


@dataclass(frozen=True)
class Run:
    """One run of :func:`multi_path`.

    Attributes:
        name: of the sub-net.
        strength, beta: lambda_i and beta_i of equation 3; see :class:`dynkern.subnets.GroupLasso`.
        size: pruning stops when what is left costs no more than this; by default it goes on to the end.
    """

    name: str
    strength: float
    beta: float | None = None
    size: float | None = None


@dataclass(frozen=True)
class Generated:
    """What a run gave.

    Attributes:
        subnets: in the order of the snapshots.
        reached: for each by name the epochs that had passed, or None if the run ended before its size was reached and
            the weakest channels were taken out at once.
        history: a record per epoch.
    """

    subnets: list[SubNet]
    reached: dict[str, float | None]
    history: History


class _Sampler:
    """Prunes after each step, and takes the snapshots; its state goes into the run's checkpoint."""

    def __init__(
        self, pruning: Pruning, snapshots: Sequence[Snapshot], rate: Callable[[float], float], steps: int, kind: str
    ) -> None:
        self.pruning, self.kind = pruning, kind
        self._snapshots, self._rate, self._steps = list(snapshots), rate, steps
        self._sizes = sorted((s for s in snapshots if s.size is not None), key=lambda s: -(s.size or 0.0))
        self._step = 0
        self.taken: dict[str, SubNet] = {}
        self.reached: dict[str, float | None] = {}

    @property
    def _over(self) -> bool:
        return len(self.taken) == len(self._snapshots)

    def after_step(self) -> None:
        pruning = self.pruning
        if self._over:
            pruning.apply_()
        else:
            pruning.lasso.shrink_(self._rate(self._step / self._steps), pruning.alive)
            if pruning.prune_():
                self._look()
        self._step += 1

    def after_epoch(self, epoch: int) -> dict[str, float]:
        for snapshot in self._snapshots:
            if snapshot.epoch == epoch:
                self._take(snapshot, epoch)
        return {"macs": self.pruning.cost("macs"), "weights": self.pruning.cost("weights")}

    def _look(self) -> None:
        for snapshot in self._sizes:
            if snapshot.name not in self.taken and self.pruning.cost(self.kind) <= (snapshot.size or 0.0):
                self._take(snapshot, (self._step + 1) / self._steps)

    def _take(self, snapshot: Snapshot, when: float) -> None:
        self.taken[snapshot.name] = self.pruning.subnet(snapshot.name)
        self.reached[snapshot.name] = when

    def finish(self) -> None:
        """Cut the weakest channels for the sizes that were not reached."""
        for snapshot in self._sizes:
            if snapshot.name not in self.taken:
                self.pruning.cut_(snapshot.size or 0.0, self.kind)
                self.taken[snapshot.name] = self.pruning.subnet(snapshot.name)
                self.reached[snapshot.name] = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "pruning": self.pruning.state_dict(),
            "step": self._step,
            "taken": {name: subnet.to_json() for name, subnet in self.taken.items()},
            "reached": dict(self.reached),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruning.load_state_dict(state["pruning"])
        self._step = state["step"]
        self.taken = {name: SubNet.from_json(text) for name, text in state["taken"].items()}
        self.reached = dict(state["reached"])


def single_path(
    net: nn.Module,
    data: Stream,
    recipe: Recipe,
    lasso: GroupLasso,
    snapshots: Sequence[Snapshot],
    example: Tensor,
    *,
    kind: str = "macs",
    threshold: float = THRESHOLD,
    least: float = 0.0,
    step: LossStep = classify,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Sample several sub-nets in one run (equation 4): the network is pruned on and on, so that they are nested.

    After each step the penalty's proximal step makes channels smaller, and those that vanish are out for good. Once the
    last snapshot is taken there is no penalty any more.

    Args:
        net: a plain, trained network; trained on, in place. It ends as the smallest sub-net.
        data, recipe, step, checkpoint, progress: as of :func:`dynkern.train.fit`.
        lasso: the penalty, made for ``net``.
        snapshots: when to take which sub-net.
        example: an input (1, ...), to know the cost of each layer.
        kind: what sizes mean: ``"macs"``, or ``"weights"`` of convolutions and linear layers.
        threshold, least: when a channel vanishes, and the share of its channels that each layer keeps in any case; see
            :class:`dynkern.subnets.Pruning`.

    Returns:
        The sub-nets. Where a size was not reached, the weakest channels were taken out at the end.

    Raises:
        ValueError: there is no snapshot, two have one name, one lies behind the last epoch, or one is too small for the
            network.
    """
    names = [s.name for s in snapshots]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"snapshots: expected at least one, each of another name, got {names}")
    late = [s.name for s in snapshots if s.epoch is not None and s.epoch > recipe.epochs]
    if late:
        raise ValueError(f"snapshots: expected epochs up to {recipe.epochs}, the last one, got later ones for {late}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {list(KINDS)}, got {kind!r}")
    sampler = _Sampler(Pruning(net, lasso, example, threshold, least), snapshots, recipe.rates(), data.steps, kind)
    history = fit(
        net,
        data,
        recipe,
        step=step,
        hooks=Hooks(after_step=sampler.after_step, after_epoch=sampler.after_epoch),
        checkpoint=checkpoint,
        parts={"sampler": sampler},
        progress=progress,
    )
    sampler.finish()
    return Generated([sampler.taken[name] for name in names], {n: sampler.reached[n] for n in names}, history)


def multi_path(
    build: Callable[[], nn.Module],
    data: Stream,
    recipe: Recipe,
    paths: Sequence[Run],
    example: Tensor,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[str], Progress] | None = None,
    **options: Any,
) -> Generated:
    """Sample each sub-net in a run of its own, with its own lambda and beta (equation 3); they need not be nested.

    Args:
        build: makes the trained network that each run begins with.
        data, recipe, example: as of :func:`single_path`.
        paths: the runs.
        folder: has one checkpoint per run.
        progress: gives what is told of a run by its name.
        options: others of :func:`single_path`.

    Returns:
        The sub-nets, and the records of all runs, each with its ``path``.
    """
    subnets: list[SubNet] = []
    reached: dict[str, float | None] = {}
    history: History = []
    for path in paths:
        net = build()
        stop = Snapshot(path.name, epoch=recipe.epochs) if path.size is None else Snapshot(path.name, size=path.size)
        found = single_path(
            net,
            data,
            recipe,
            GroupLasso(net, path.strength, path.beta),
            [stop],
            example,
            checkpoint=None if folder is None else os.path.join(folder, f"{path.name}.pt"),
            progress=None if progress is None else progress(path.name),
            **options,
        )
        subnets += found.subnets
        reached.update(found.reached)
        history += [{"path": path.name, **record} for record in found.history]
    return Generated(subnets, reached, history)


def penalised(step: LossStep, penalty: Callable[[], Tensor]) -> LossStep:
    """``step`` with the gradient of ``penalty()`` added, literally as in equation 2; :func:`single_path` does without.

    Args:
        step: any training step.
        penalty: such as a :class:`dynkern.subnets.GroupLasso`.
    """

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Any:
        outcome = step(net, x, y)
        with torch.autocast(x.device.type, enabled=False):
            value = penalty()
        value.backward()
        return outcome._replace(loss=outcome.loss + value.detach())

    return run
