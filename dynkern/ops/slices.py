"""Taking the active slice of a full weight, and putting its gradient back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def conv_rows(
    shape: Sequence[int],
    channels: int,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor | slice:
    """Selects the active output channels of a weight of ``shape`` (O, I / groups, kh, kw) for ``channels`` inputs."""
    if groups == 1:
        return out_index if out_index is not None else slice(0, out_channels)
    multiplier = shape[0] // groups
    if in_index is None:
        return slice(0, channels // shape[1] * multiplier)
    return (in_index[:, None] * multiplier + in_index.new_ones(multiplier).cumsum(0)[None] - 1).flatten()


def conv_columns(channels: int, groups: int, in_index: Tensor | None) -> Tensor | slice:
    """What selects the active input channels of a convolution's weight; each group keeps all of its own."""
    if groups > 1:
        return slice(None)
    return slice(0, channels) if in_index is None else in_index


def scatter(
    shape: Sequence[int], active: Tensor, rows: Tensor | slice, columns: Tensor | slice = slice(None)
) -> Tensor:
    """Zeros of ``shape`` with ``active`` added at (``rows``, ``columns``): the transpose of taking that slice."""
    if isinstance(columns, Tensor):
        active = active.new_zeros((active.shape[0], *shape[1:])).index_add(1, columns, active)
        columns = slice(None)
    full = active.new_zeros(tuple(shape))
    if isinstance(rows, slice):
        if len(shape) == 1:
            full[rows] = active
        else:
            full[rows, columns] = active
        return full
    if len(shape) > 1 and columns != slice(None):
        wide = active.new_zeros((active.shape[0], *shape[1:]))
        wide[:, columns] = active
        active = wide
    return full.index_add(0, rows, active)
