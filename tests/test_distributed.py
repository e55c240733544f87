"""Two processes give what one gives with the joint batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_fused import slim
from test_train import images, same
from torch import Tensor, nn

from dynkern.data import Stream
from dynkern.train import Recipe, fit, fused
from dynkern.train.distributed import join_batch_norms, separate_batch_norms, start

RECIPE = Recipe(epochs=2, lr=0.05, precision="float32", channels_last=False)
DATA = {"batch": 8, "seed": 3}


class Double(nn.Module):
    """Runs a network in float64, so that only the order of sums is different."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


def train(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=processes)
    net = Double(slim())
    stream = Stream(images(), **DATA, rank=rank, processes=processes)
    history = fit(net, stream, RECIPE, step=fused(), checkpoint=folder / f"run{processes}.pt")
    torch.save({"net": net.state_dict(), "history": history}, folder / f"{processes}-{rank}.pt")
    if processes > 1:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes_and_the_joint_batch(tmp_path: Path) -> None:
    train(0, 1, tmp_path)
    mp.spawn(train, (2, tmp_path), nprocs=2)
    one, two, other = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert same(two["net"], other["net"])
    for name, value in one["net"].items():
        torch.testing.assert_close(two["net"][name], value, rtol=1e-9, atol=1e-11)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["train_accuracy"] == b["train_accuracy"]
    assert type(slim()[1].bn[0]) is nn.BatchNorm2d


def test_joint_batch_norm_of_one_process_is_torchs(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        for momentum in (0.1, None):
            plain, joint = (nn.BatchNorm2d(4, momentum=momentum).double() for _ in range(2))
            join_batch_norms(joint)
            x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
            gradients = []
            for bn in (plain, joint):
                leaf = x.clone().requires_grad_()
                for _ in range(2):
                    y = bn(leaf)
                (y * torch.arange(4).view(-1, 1, 1)).square().sum().backward()
                gradients.append((y, leaf.grad, bn.weight.grad, bn.bias.grad))
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b)
            for name, value in plain.state_dict().items():
                torch.testing.assert_close(joint.state_dict()[name], value)
            assert joint(x.bfloat16().double()).dtype == torch.float64
            assert type(separate_batch_norms(joint)) is nn.BatchNorm2d
    finally:
        dist.destroy_process_group()


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert start() == (0, 1)
