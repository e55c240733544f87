"""The suite of a whole ternary network: what it runs, what it weighs, and that a trained file takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dynkern as dk
from dynkern.__main__ import main
from dynkern.bench import peers, results, run, ternary_network
from dynkern.bench.cases import TernaryNetworkCase, plan
from dynkern.bench.results import ENGINE, ENGINE_DENSE, ENGINE_INT8, MODULES
from dynkern.nn.packed import PackedTernary


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed network with two scales, that nobody trained."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("ttq") / "packed.safetensors"
    dk.save(dk.pack(dk.ternarize(dk.models.resnet_binary(inflate=1).eval(), scheme="ttq")), file)
    return file


def test_a_random_network_has_the_zeros_that_were_asked_for() -> None:
    net = ternary_network.random(1, 0.9)
    assert dk.ternary.stats(net.packed).total.sparsity == pytest.approx(0.9, abs=0.005)
    assert not any(isinstance(layer, PackedTernary) for layer in net.plain.modules())
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        y = net.plain(x)
        assert y.std() > 0.1
        for other in (net.packed(x), net.engine()(x), net.dense_engine()(x)):
            assert torch.allclose(other, y, rtol=1e-4, atol=1e-4)


def test_sizes_are_those_of_files(packed: Path, tmp_path: Path) -> None:
    net = ternary_network.read(packed)
    sizes = net.sizes()
    assert sizes["packed file"] == packed.stat().st_size
    dk.save(net.plain, tmp_path / "plain.safetensors")
    assert sizes["float32 file"] == (tmp_path / "plain.safetensors").stat().st_size
    total = dk.ternary.report(net.packed).total
    assert sizes["packed weights"] == total.packed_bytes
    assert sizes["entropy of the weights"] == total.coded_bytes
    dk.save(net.packed, tmp_path / "coded.safetensors", codec="entropy")
    assert sizes["entropy-coded file"] == (tmp_path / "coded.safetensors").stat().st_size
    assert sizes["entropy-coded file"] < sizes["packed file"]
    assert sizes["float32 weights"] == 4 * 174_128


def test_every_variant_is_right(packed: Path) -> None:
    points = ternary_network.with_file(plan("ternary-network", True, [1]), packed)
    rows = run.measure(points, peers.none("not here"), budget_s=0.1)
    assert [row.variant for row in rows] == [ENGINE, ENGINE_INT8, ENGINE_DENSE, MODULES, "eager"]
    assert {row.status for row in rows} == {"ok"}
    zeros = dk.ternary.stats(ternary_network.read(packed).packed).total.sparsity
    assert {row.value for row in rows} == {zeros}
    assert rows[0].macs < rows[0].dense_macs


def test_the_command_with_a_trained_file(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    arguments = ["bench", "--suite", "ternary-network", "--quick", "--peers", "none", "--out", str(tmp_path)]
    assert main([*arguments, "--packed", str(packed)]) == 0
    found = results.read(tmp_path / "results.json")
    (sizes,) = found.sizes.values()
    assert sizes["packed file"] == packed.stat().st_size
    shown = capsys.readouterr().out
    assert "entropy of the weights" in shown
    assert "dense" in shown
    assert main(["bench", "--replot", str(tmp_path / "results.json"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(shown.split("wrote")[0].rstrip())


def test_files_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.safetensors"
    dk.save(dk.models.resnet20(), file)
    with pytest.raises(ValueError, match="missing tensors"):
        ternary_network.read(file)
    dk.save(dk.models.resnet_binary(inflate=1), file)
    with pytest.raises(ValueError, match="expected packed layers"):
        ternary_network.read(file)
    dk.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match="expected a packed resnet_binary"):
        ternary_network.read(file)
    assert main(["bench", "--suite", "width", "--packed", str(file)]) == 2
    assert "--packed: expected only with --suite ternary-network" in capsys.readouterr().err


def test_the_suite_says_what_it_is() -> None:
    (point,) = plan("ternary-network", True, [1])
    assert isinstance(point.case, TernaryNetworkCase)
    assert "90% zeros" in str(point)
