"""Training steps: the loss of one batch, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Outcome(NamedTuple):
    """What a training step tells of its batch.

    Attributes:
        loss: a number, without a graph.
        correct: how many images of the batch were classified right, of whatever the step reports on.
    """

    loss: Tensor
    correct: Tensor


# Takes the network, images and labels; adds the gradients of its loss to the parameters' ``.grad``.
LossStep = Callable[[nn.Module, Tensor, Tensor], Outcome]


def classify(net: nn.Module, x: Tensor, y: Tensor) -> Outcome:
    """Cross entropy."""
    logits = net(x).float()
    loss = F.cross_entropy(logits, y)
    loss.backward()
    return Outcome(loss.detach(), right(logits, y))


def right(logits: Tensor, y: Tensor) -> Tensor:
    """How many of ``logits`` (N, classes) are largest at the label."""
    return (logits.detach().argmax(1) == y).sum()
