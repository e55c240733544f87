"""Where the CUDA forms put each weight, and what a register decodes to: every place there is."""

from __future__ import annotations

import ctypes
from itertools import product

import pytest
import torch
from cuda_emulator import emulator

from dynkern.ops.ternary_weight import pack_signs

CODES = {0: 0, 1: 1, -1: 3}


@pytest.fixture(scope="module")
def machine() -> ctypes.CDLL:
    return emulator()


def place(machine: ctypes.CDLL, form: int, row: int, unit: int, k: int) -> tuple[int, ...]:
    found = (ctypes.c_int * 3)()
    machine.place_of(form, row, unit, k, found)
    return tuple(found)


@pytest.mark.parametrize("sign", [0, 1, -1])
def test_decoding(machine: ctypes.CDLL, sign: int) -> None:
    """A code is 64 times its weight in int8, twice its weight in both 16-bit types, and disturbs no other."""
    machine.decoded_int8.restype = machine.decoded_16.restype = ctypes.c_uint32
    for at in range(16):
        for others in (0, 0xFFFFFFFF):
            word = (others & ~(3 << 2 * at) | CODES[sign] << 2 * at) & 0xFFFFFFFF
            i, byte = at % 4, at // 4
            register = machine.decoded_int8(word, i)
            value = ctypes.c_int8(register >> 8 * byte & 0xFF).value
            assert value == 64 * sign
            u, half, e = i // 2, byte % 2, byte // 2
            bits = machine.decoded_16(word, u, i % 2 + 2 * half) >> 16 * e & 0xFFFF
            for dtype in (torch.bfloat16, torch.float16):
                number = torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(dtype).item()
                assert number == 2 * sign


def test_dense_places(machine: ctypes.CDLL) -> None:
    """Every weight of a tile has a place of its own, and a lane's are of its two outputs and its inputs alone."""
    seen = {}
    for row, k in product(range(16), range(128)):
        lane, word, at = seen[row, k] = place(machine, 0, row, 0, k)
        assert lane // 4 == row % 8
        assert k // 64 == word // 2
        assert k % 64 // 16 == lane % 4
        assert k % 16 // 8 == word % 2
        assert at % 2 == row // 8  # registers 0 and 2 of A are of output g, 1 and 3 of g + 8
    assert len(set(seen.values())) == 16 * 128 == 32 * 4 * 16


@pytest.mark.parametrize(("form", "units", "groups"), [(2, 1, 16), (3, 2, 8)])
def test_sparse_places(machine: ctypes.CDLL, form: int, units: int, groups: int) -> None:
    """Values, metadata and inputs of one word's instructions: all different, and nothing left over."""
    values, metadata = set(), set()
    for row, unit, group in product(range(16), range(units), range(groups)):
        values |= {place(machine, form, row, unit, 2 * group + kept) for kept in range(2)}
        at = (ctypes.c_int * 2)()
        machine.metadata_of(form, row, unit, group, at)
        assert at[1] % 4 == 0
        if form == 3:
            assert at[0] % 4 // 2 == unit  # the selector names the pair of lanes
        metadata.add(tuple(at))
    assert len(values) == len(metadata) * 2 == 32 * 16
    inputs = {machine.sparse_input(form, group, j) for group in range(groups) for j in range(4)}
    assert inputs == set(range(4 * groups))


def lists_of(machine: ctypes.CDLL, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries, (quads, lanes, 16), and their bases, (quads, 4), of one tile and one chunk."""
    outputs, inputs = weight.shape
    most = outputs * inputs
    words, bases = torch.zeros(most * 128, dtype=torch.int32), torch.zeros(most, dtype=torch.int32)
    codes = pack_signs(weight)
    address = [ctypes.c_void_p(t.data_ptr()) for t in (codes, words, bases)]
    quads = machine.packed_lists(address[0], outputs, inputs, 1, *address[1:], most)
    entries = words[: quads * 128].view(torch.uint8).view(quads, 32, 16)
    return entries, bases[:quads].view(torch.uint8).view(quads, 4)


def test_lists_hold_every_nonzero_once(machine: ctypes.CDLL) -> None:
    signs = torch.randint(0, 2, (32, 480), dtype=torch.int8) * 2 - 1
    weight = torch.where(torch.rand(32, 480) < 0.9, 0, signs).to(torch.int8)
    entries, bases = lists_of(machine, weight)
    slot, sign = (entries & 0x7F).long(), torch.where(entries >= 0x80, -1, 1)
    there = slot % 16 < 15
    assert (slot[~there] == 15).all()
    input_of = (bases.long().repeat_interleave(4, 1)[:, None, :] + slot // 16) * 15 + slot % 16
    back = torch.zeros(32, 480, dtype=torch.int64)
    lane = torch.arange(32)[None, :, None].expand_as(slot)
    back.index_put_((lane[there], input_of[there]), sign[there], accumulate=True)
    assert torch.equal(back, weight.long())


@pytest.mark.parametrize(
    ("zeros", "bits", "int8_rounds", "half_rounds"), [(0.9, 1.5, 1.0, 1.6), (0.95, 0.95, 1.0, 1.6)]
)
def test_lists_are_short_and_gathers_meet_few_banks(
    machine: ctypes.CDLL, zeros: float, bits: float, int8_rounds: float, half_rounds: float
) -> None:
    """Bits per weight, and how often a gather must be repeated because two lanes want two words of one bank."""
    signs = torch.randint(0, 2, (32, 3840), dtype=torch.int8) * 2 - 1
    weight = torch.where(torch.rand(32, 3840) < zeros, 0, signs).to(torch.int8)
    entries, _ = lists_of(machine, weight)
    assert entries.numel() * 8 / weight.numel() <= bits
    steps = (entries & 0x7F).long().permute(0, 2, 1).reshape(-1, 32)  # one gather per row
    for size, most in ((1, 1.0), (2, 1.9)):
        rounds = []
        for step in steps * size // 4:
            words = step.unique()
            rounds.append(int((words % 32).bincount().max()))
        assert sum(rounds) / len(rounds) <= most
