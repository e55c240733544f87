"""Fused training: the gradients of several sub-nets, one step (equation 5 of Yang & Fan, ASP-DAC 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynkern.nn.selection import Key
from dynkern.subnets.switch import selection_of
from dynkern.train.distill import ALPHA, TEMPERATURE, check, distillation_loss
from dynkern.train.steps import LossStep, Outcome, right


def fused(
    subnets: Iterable[Key] | None = None,
    *,
    teacher: nn.Module | None = None,
    in_place: bool = False,
    alpha: float = ALPHA,
    temperature: float = TEMPERATURE,
    sandwich: int | None = None,
) -> LossStep:
    """The training step of a slim network: ``min_W sum_i L_i(f(x; W M_i))``, all sub-nets on the same batch.

    Gradients add up in the shared weights, which are stepped once; each sub-net is run and differentiated before the
    next, so that memory is that of one. With no further arguments this is the training of slimmable networks
    (Yu et al., ICLR 2019).

    Args:
        subnets: which sub-nets, by key, widest last; all of the network by default.
        teacher: a network that is not trained; every sub-net learns from its logits too (figure 3a): see
            :func:`~dynkern.train.distillation_loss` for ``alpha`` and ``temperature``.
        in_place: the last sub-net learns from the labels (and the teacher), the others from the last one
            (Yu & Huang, Universally Slimmable Networks, ICCV 2019, 3.3).
        alpha, temperature: of the distillation.
        sandwich: instead of all, train the first and last sub-net and so many others, drawn for each batch (the
            sandwich rule, same paper, 3.2).

    Returns:
        The step, for :func:`dynkern.train.fit`. It reports the sum of the losses, and the accuracy of the last sub-net.

    Raises:
        ValueError: a number is out of range. The step raises it if the network is not slim, has no such sub-net, or
            its classes are not those of the teacher.
    """
    check(alpha, temperature)
    if sandwich is not None and sandwich < 0:
        raise ValueError(f"sandwich: expected 0 or more, got {sandwich}")
    wanted = None if subnets is None else list(subnets)
    if wanted is not None and not wanted:
        raise ValueError("subnets: expected at least one, got none")

    def step(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        selection = selection_of(net)
        chosen = list(selection.keys) if wanted is None else [selection.check(k) for k in wanted]
        if sandwich is not None:
            chosen = _sandwich(chosen, sandwich)
        guide = None if teacher is None else _taught(teacher, x)
        total = torch.zeros((), device=x.device)
        correct = total
        # The last one first: in-place distillation needs its logits.
        for key in reversed(chosen):
            with selection.using(key):
                logits = net(x).float()
            if guide is None:
                loss = F.cross_entropy(logits, y)
            else:
                loss = distillation_loss(logits, y, guide, alpha, temperature)
            loss.backward()
            total = total + loss.detach()
            if key == chosen[-1]:
                correct = right(logits, y)
                guide = logits.detach() if in_place else guide
        return Outcome(total, correct)

    return step


def _taught(teacher: nn.Module, x: Tensor) -> Tensor:
    if teacher.training:
        teacher.eval()
    with torch.no_grad():
        return teacher(x).float()


def _sandwich(keys: Sequence[Key], others: int) -> list[Key]:
    """The first, the last and ``others`` between, in order."""
    between = range(1, len(keys) - 1)
    drawn = sorted(torch.randperm(len(between))[:others].tolist())
    return [keys[0], *(keys[between[i]] for i in drawn), *keys[-1:]] if len(keys) > 1 else list(keys)
