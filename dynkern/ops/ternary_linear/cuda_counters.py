"""Words of zero for blocks that share a result: the kernel counts in them who came last, and leaves them at zero."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# Words that are zeroed beforehand for the calls that CUDA graphs hold: enough for some hundred calls.
_RESERVED = 1 << 16

_lock = threading.Lock()
_of_streams: dict[tuple[torch.device, int], Tensor] = {}
# What is left of each device's reserve; what was taken from it belongs to a graph, which nobody can ask whether it
# still lives, so reserves stay.
_left: dict[torch.device, Tensor] = {}
_reserves: list[Tensor] = []


def reserve(device: torch.device) -> None:
    """See to it that graphs find zeros; not while one is captured."""
    with _lock:
        left = _left.get(device)
        if left is None or left.numel() < _RESERVED // 2:
            _left[device] = torch.zeros(_RESERVED, dtype=torch.int32, device=device)
            _reserves.append(_left[device])
            # They are zero before any stream's call counts in them.
            torch.cuda.current_stream(device).synchronize()


def zeros(count: int, device: torch.device) -> Tensor:
    """At least ``count`` zeros: one buffer per stream, whose calls run in turn.

    Each call in a CUDA graph gets some of its own, since replays may run beside anything: from the reserve, so that the
    graph has no node that sets them to zero, or where that is used up by such a node.
    """
    if torch.cuda.is_current_stream_capturing():
        with _lock:
            left = _left.get(device)
            if left is not None and left.numel() >= count:
                _left[device] = left[count:]
                return left[:count]
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    kept = _of_streams.get(key)
    if kept is None or kept.numel() < count:
        kept = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
        _of_streams[key] = kept
    return kept
