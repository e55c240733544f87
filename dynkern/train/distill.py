"""Knowledge distillation: learning from a teacher's logits."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# Yang & Fan give neither number; these are the customary ones.
ALPHA, TEMPERATURE = 0.5, 4.0


def distillation_loss(
    logits: Tensor, y: Tensor, teacher: Tensor, alpha: float = ALPHA, temperature: float = TEMPERATURE
) -> Tensor:
    """``(1 - alpha) CE(logits, y) + alpha T^2 KL(softmax(teacher / T) || softmax(logits / T))`` (Hinton et al., 2015).

    Args:
        logits: (N, classes), of the student.
        y: (N,) int64, the labels.
        teacher: (N, classes), the teacher's logits; no gradient goes there.
        alpha: how much the teacher counts, 0 to 1.
        temperature: T, above 0.

    Returns:
        A number, the mean over the batch.

    Raises:
        ValueError: a number is out of range, or student and teacher do not have the same classes.
    """
    check(alpha, temperature)
    if logits.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected logits of {tuple(logits.shape)} (images, classes) as the student's, got "
            f"{tuple(teacher.shape)}"
        )
    soft = F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher.detach() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * F.cross_entropy(logits, y) + alpha * temperature**2 * soft


def check(alpha: float, temperature: float) -> None:
    """Refuse numbers out of range."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, got {alpha}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
