"""The integer weight of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern.ops import TernaryWeight

LARGEST = {8: 127, 16: 32767}


@dataclass(frozen=True)
class SkippingWeight:
    """A ternary weight (its scale is the epilogue's) for bytes, whose zeros cost nothing."""

    ternary: TernaryWeight

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I, kh, kw)."""
        return self.ternary.shape


@dataclass(frozen=True)
class QuantizedWeight:
    """``weight[o] = scale[o] * values[o]``: symmetric, with a scale for each output channel.

    Attributes:
        values: (O, I, kh, kw), int8 or int16.
        scale: (O,) float64.
    """

    values: Tensor
    scale: Tensor

    @classmethod
    def from_float(cls, weight: Tensor, bits: int) -> QuantizedWeight:
        """The nearest integers to ``weight`` (O, I, kh, kw), whose largest per output becomes 127 or 32767."""
        exact = weight.detach().double()
        scale = exact.abs().amax((1, 2, 3)) / LARGEST[bits]
        scale[scale == 0] = 1
        values = (exact / scale[:, None, None, None]).round()
        return cls(values.to(torch.int8 if bits == 8 else torch.int16).contiguous(), scale)

    @classmethod
    def of_ternary(cls, weight: TernaryWeight) -> QuantizedWeight:
        """-1, 0 and +1 as such: int8, with scales of one (that of a ternary weight is the epilogue's)."""
        return cls(weight.signs().contiguous(), torch.ones(weight.shape[0], dtype=torch.float64))

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * self.values.element_size()

    @property
    def shape(self) -> torch.Size:
        """(O, I, kh, kw)."""
        return self.values.shape

    def exact_words(self) -> int:
        """How many words (pairs of input channels at one tap) in a row have an exact sum in 32 bits for any input.

        That is so if 32767 times the sum of the magnitudes of their weights is less than 2^31.
        """
        pairs = self.pairs().abs().sum(-1)
        count = pairs.shape[1]
        sums = torch.cat([pairs.new_zeros(len(pairs), 1), pairs.cumsum(1)], 1)
        for length in range(1, count + 1):
            if bool(((sums[:, length:] - sums[:, :-length]) * LARGEST[16] >= 2**31).any()):
                return length - 1
        return count

    def pairs(self) -> Tensor:
        """(O, ceil(I / 2) * kh * kw, 2) int64: the words of an int16 weight in the order in which they are added."""
        outputs, inputs, height, width = self.shape
        padded = torch.nn.functional.pad(self.values.long(), (0, 0, 0, 0, 0, inputs % 2))
        parts = padded.reshape(outputs, -1, 2, height * width)
        return parts.transpose(2, 3).reshape(outputs, -1, 2)
