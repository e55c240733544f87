"""Random crops and mirror images of whole batches at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Crops from a padded image, and mirror images (He et al., CVPR 2016, section 4.2).

    Attributes:
        pad: black pixels that are put on each side before the image is cut out again; 0 crops nothing.
        flip: mirror every other image, at random.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or self.pad < 0:
            raise ValueError(f"pad: expected an integer of 0 or more, got {self.pad!r}")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where each image is cut out, (count, 2) int64 of 0 to 2 pad, and which are mirrored, (count,) bool."""
        shifts = torch.randint(0, 2 * self.pad + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        return shifts, mirrored

    def apply(self, images: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        """``images`` (N, C, H, W) of any dtype, cut out at ``shifts`` and mirrored; see :meth:`draw`."""
        height, width = images.shape[2:]
        if self.pad:
            padded = F.pad(images, (self.pad,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2 pad + 1, 2 pad + 1, H, W), no copy
            each = torch.arange(len(images), device=images.device)
            images = windows[each, :, shifts[:, 0], shifts[:, 1]]
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


CROP_AND_FLIP = Augment()
