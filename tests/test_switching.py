"""select and using: what they cost, and what other threads see."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import threading
import time
from typing import Any

import pytest
import torch
from slim_models import NON_UNIFORM, assert_same, sample, tolerance
from torch.utils._python_dispatch import TorchDispatchMode

from dynkern import subnets as dk
from dynkern.models import resnet20
from dynkern.nn import Selection


class CountOps(TorchDispatchMode):
    """Counts every operator that PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def slim_sample(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, torch.Tensor]:
    model, x = sample(name, dtype)
    net = dk.slim(model, (0.25, 0.5, 1.0, NON_UNIFORM[name]))
    dk.calibrate_bn(net, [x])
    return net.eval(), x


def test_select_and_using_run_no_operator() -> None:
    net, x = slim_sample("dense")
    storages = {p.data_ptr() for p in (*net.parameters(), *net.buffers())}
    with CountOps() as ops:
        for key in dk.keys(net):
            dk.select(net, key)
            with dk.using(net, key):
                pass
        assert ops.count == 0
        net(x)
        assert ops.count > 0
    assert {p.data_ptr() for p in (*net.parameters(), *net.buffers())} == storages


def test_select_takes_less_than_five_microseconds() -> None:
    net = dk.slim(resnet20())
    for key in dk.keys(net):
        best = float("inf")
        for _ in range(50):
            start = time.perf_counter()
            for _ in range(20):
                dk.select(net, key)
            best = min(best, (time.perf_counter() - start) / 20)
        assert best < 5e-6


def test_select_holds_until_the_next_one() -> None:
    net, x = slim_sample("mobile")
    for key in (0.5, 0.25, "odd", 1.0):
        dk.select(net, key)
        assert dk.active(net) == key
        assert_same(net(x), dk.extract(net, key)(x), net)


def test_using_ends_with_its_block_and_nests() -> None:
    net, _ = slim_sample("mlp")
    with dk.using(net, 0.5):
        assert dk.active(net) == 0.5
        with dk.using(net, "odd"):
            assert dk.active(net) == "odd"
            dk.select(net, 0.25)
            assert dk.active(net) == "odd"
        assert dk.active(net) == 0.5
    assert dk.active(net) == 0.25
    with pytest.raises(ZeroDivisionError), dk.using(net, 0.5):
        raise ZeroDivisionError
    assert dk.active(net) == 0.25


def test_using_one_network_leaves_another_alone() -> None:
    a, _ = slim_sample("mlp")
    b = copy.deepcopy(a)
    with dk.using(a, 0.25), dk.using(b, 0.5):
        assert (dk.active(a), dk.active(b)) == (0.25, 0.5)
        c = copy.deepcopy(a)
        assert dk.active(c) == 1.0
    assert (dk.active(a), dk.active(b)) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["residual", "dense"])
def test_threads_run_different_sub_nets_at_once(name: str) -> None:
    net, x = slim_sample(name, torch.float32)
    expected = {key: dk.extract(net, key)(x) for key in dk.keys(net)}
    start, wrong = threading.Barrier(len(expected) + 1), []

    def work(key: Any, own: bool) -> None:
        start.wait()
        for _ in range(30):
            with torch.no_grad():
                if own:
                    with dk.using(net, key):
                        y = net(x)
                else:
                    y = net(x)
            if not torch.allclose(y, expected[key], rtol=0, atol=tolerance(net, expected[key])):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(key, True)) for key in expected]
    threads.append(threading.Thread(target=work, args=(1.0, False)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_asyncio_tasks_choose_for_themselves() -> None:
    net, _ = slim_sample("mlp")

    async def task(key: Any) -> bool:
        with dk.using(net, key):
            await asyncio.sleep(0.001)
            return dk.active(net) == key

    async def both() -> list[bool]:
        return list(await asyncio.gather(*(task(key) for key in dk.keys(net))))

    assert all(asyncio.run(both()))


def test_a_context_that_outlives_the_block_ends_with_it() -> None:
    net, _ = slim_sample("mlp")
    with dk.using(net, 0.25):
        context = contextvars.copy_context()
    assert context.run(dk.active, net) == 1.0
    with dk.using(net, 0.5):
        assert context.run(dk.active, net) == 1.0


def test_selection_survives_pickling() -> None:
    selection = Selection((0.5, "a"), 0.5)
    with selection.using("a"):
        other = pickle.loads(pickle.dumps(selection))
    assert (other.keys, other.active()) == ((0.5, "a"), 0.5)
    other.select("a")
    assert selection.active() == 0.5


@pytest.mark.parametrize("keys", [(), (0.5, 0.5)])
def test_bad_keys(keys: Any) -> None:
    with pytest.raises(ValueError, match="subnets: expected"):
        Selection(keys)


def test_made_says_how_to_make_the_network_again() -> None:
    net, _ = slim_sample("dense")
    made = dk.made(copy.deepcopy(net))
    assert made == ((0.25, 0.5, 1.0, NON_UNIFORM["dense"]), 1)
    again = dk.slim(sample("dense")[0], *made)
    assert again.state_dict().keys() == net.state_dict().keys()
