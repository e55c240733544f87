"""Packed ternary weights in fewer than 2 bits each: the entropy-coded form that files may hold.

The coder is a range coder (constriction, the optional extra ``entropy``). Weights are coded one by one in the order of
the packed form, as 0, 1 (+1) and 2 (-1), by one of two models:

* up to ``ADAPTIVE`` weights: the estimator of Krichevsky and Trofimov. Each weight has the probability (its count so
  far + 1/2) / (weights so far + 3/2), so nothing is stored beside the code; all orders of the weights cost the same,
  about log2(weights) bits above the bound. The code is cut after the last byte that matters.
* more: the counts of zeros and of +1, as integers of 7 bits a byte, low bits first; then the code with their shares as
  probabilities.

So a code takes at most log2(weights) + 10 bits, or some 20 bytes for a large layer, more than the bound of the weights'
entropy: that is within 5 % where the bound is 400 bits or more (700 weights at 90 % zeros; large layers: 3,500 bits).
Below, no code could promise it that does not know the layer's shares of zeros and of +1 beforehand.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynkern.ops.ternary_weight import TernaryWeight, codes_of, pack_signs

ADAPTIVE = 8192
_SYMBOLS = 3
_WORD = 4  # bytes


def coder() -> Any:
    """The coder library; ``ImportError`` that says how to get it if it is not installed."""
    try:
        return importlib.import_module("constriction").stream
    except ImportError as error:
        raise ImportError("the entropy-coded form needs constriction: pip install 'dynkern[entropy]'") from error


def encode(weight: TernaryWeight) -> bytes:
    """The signs of ``weight``, entropy-coded; its scale is not among them.

    Raises:
        ImportError: the coder library is not installed.
    """
    stream = coder()
    count = math.prod(weight.shape[1:])
    symbols = codes_of(weight.packed.detach().cpu())[:, :count].flatten().numpy().astype(np.int32)
    code = stream.queue.RangeEncoder()
    if symbols.size <= ADAPTIVE:
        family, estimates = stream.model.Categorical(perfect=False), _estimates(symbols)
        code.encode(symbols, family, estimates)
        return _shortest(_bytes(code), lambda data: _is(symbols, _coder(stream, data), family, estimates))
    counts = np.bincount(symbols, minlength=_SYMBOLS)
    code.encode(symbols, _shares(stream, counts))
    return _number(int(counts[0])) + _number(int(counts[1])) + _bytes(code)


def decode(data: bytes, shape: Sequence[int]) -> Tensor:
    """What :func:`encode` coded: the packed weight (O, ceil(K / 4)) uint8 of ``shape``.

    Raises:
        ValueError: ``data`` is no code of a weight of ``shape``. Much damage is only seen by a checksum of the result.
        ImportError: the coder library is not installed.
    """
    stream = coder()
    total = math.prod(shape)
    try:
        symbols = _adaptively(stream, data, total) if total <= ADAPTIVE else _by_counts(stream, data, total)
    except AssertionError as error:  # the coder's own, for what no encoder writes
        raise ValueError(f"coded: {error}") from None
    signs = torch.from_numpy(symbols.astype(np.int8)).reshape(shape[0], -1)
    return pack_signs(torch.where(signs == 2, -1, signs))


def _adaptively(stream: Any, data: bytes, total: int) -> np.ndarray:
    code, family = _coder(stream, data), stream.model.Categorical(perfect=False)
    seen = np.full((1, _SYMBOLS), 0.5)
    symbols = np.empty(total, np.int32)
    for i in range(total):
        symbols[i] = symbol = code.decode(family, seen / seen.sum())[0]
        seen[0, symbol] += 1
    return symbols


def _by_counts(stream: Any, data: bytes, total: int) -> np.ndarray:
    zeros, data = _read_number(data)
    plus, data = _read_number(data)
    counts = np.array([zeros, plus, total - zeros - plus])
    if counts.min() < 0:
        raise ValueError(f"coded: counts more weights than the {total} there are")
    symbols = _coder(stream, data).decode(_shares(stream, counts), total)
    if (np.bincount(symbols, minlength=_SYMBOLS) != counts).any():
        raise ValueError("coded: the weights are not those that were counted")
    return np.asarray(symbols)


def _estimates(symbols: np.ndarray) -> np.ndarray:
    """(n, 3) float64: the probabilities of each symbol, given those before it."""
    ones = symbols[:, None] == np.arange(_SYMBOLS)
    seen = np.cumsum(ones, 0) - ones + 0.5
    return np.asarray(seen / seen.sum(1, keepdims=True))


def _shares(stream: Any, counts: np.ndarray) -> Any:
    return stream.model.Categorical(counts / counts.sum(), perfect=False)


def _shortest(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    """The shortest code that says the same as ``data``: a range coder's last bytes may be any within its range."""
    while data:
        fewer = int.from_bytes(data[:-1], "big")
        tries = [n.to_bytes(len(data) - 1, "big") for n in (fewer, fewer + 1) if n < 256 ** (len(data) - 1)]
        shorter = next((t for t in tries if same(t)), None)
        if shorter is None:
            break
        data = shorter
    return data


def _is(symbols: np.ndarray, code: Any, *model: Any) -> bool:
    try:
        return bool((code.decode(*model) == symbols).all())
    except AssertionError:
        return False


def _bytes(code: Any) -> bytes:
    """The code's words, high bytes first."""
    return bytes(code.get_compressed().astype(">u4").tobytes())


def _coder(stream: Any, data: bytes) -> Any:
    """A decoder of ``data``, which zeros follow."""
    return stream.queue.RangeDecoder(np.frombuffer(data + bytes(-len(data) % _WORD), ">u4").astype(np.uint32))


def _number(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def _read_number(data: bytes) -> tuple[int, bytes]:
    value = 0
    for i, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, data[i + 1 :]
    raise ValueError("coded: ends within a count")
