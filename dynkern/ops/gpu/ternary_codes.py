"""The form of a packed ternary weight that GPU kernels read, derived from format 1 and never saved.

2 bits a weight still. The reduction runs over taps, then channels, in blocks of 4 Q channels of one tap (the last one
padded with zeros). A byte holds one weight of each quarter of a block, so that decoding it gives four weights whose
inputs lie in four contiguous runs: byte q of a block holds the weights of channels q, Q + q, 2 Q + q and 3 Q + q, low
bits first, in two's complement (``11`` is -1). Blocks come first, then outputs: what one kernel instance reads of a
block is one piece of memory, and any number of first outputs and first blocks is read without a change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynkern.ops.gpu.derived import Derived
from dynkern.ops.ternary_weight import unpack, unpack_signs

_codes: Derived[Tensor] = Derived()
_dense: Derived[Tensor] = Derived()


def encode(signs: Tensor, quarter: int) -> Tensor:
    """(O, I) or (O, I, kh, kw) int8 of {-1, 0, +1} to (taps, blocks, O, Q) uint8; ``blocks`` = ceil(I / 4 Q)."""
    signs = signs.flatten(2) if signs.dim() > 2 else signs.unsqueeze(2)
    signs = torch.nn.functional.pad(signs.permute(2, 0, 1), (0, -signs.shape[1] % (4 * quarter)))
    codes = (signs & 3).to(torch.uint8).unflatten(2, (-1, 4, quarter))  # (taps, O, blocks, 4, Q)
    packed = codes[:, :, :, 0] | codes[:, :, :, 1] << 2 | codes[:, :, :, 2] << 4 | codes[:, :, :, 3] << 6
    return packed.transpose(1, 2).contiguous()


def codes_for(
    packed: Tensor, shape: Sequence[int], quarter: int, in_index: Tensor | None, out_index: Tensor | None
) -> Tensor:
    """``encode`` of a weight of format 1; of a compacted copy of its slice where there are index sets. Kept."""

    def derive() -> Tensor:
        signs = unpack_signs(packed, shape)
        signs = signs if out_index is None else signs[out_index]
        return encode(signs if in_index is None else signs[:, in_index], quarter)

    tensors = tuple(t for t in (packed, in_index, out_index) if t is not None)
    return _codes.get(tensors, (*shape, quarter, in_index is None, out_index is None), derive)


def dense_for(packed: Tensor, shape: Sequence[int], scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The dense weight, for the small weights of depthwise and grouped convolutions. Kept."""
    tensors = tuple(t for t in (packed, scale) if t is not None)
    return _dense.get(tensors, (*shape, dtype, scale is None), lambda: unpack(packed, shape, scale).to(dtype))
