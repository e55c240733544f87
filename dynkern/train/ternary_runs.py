"""Runs of ternary training that continue where they were broken off, and what each leaves behind."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dynkern
from dynkern import models
from dynkern.data import Images, Stream, normalize
from dynkern.engine import compile
from dynkern.files import replacing
from dynkern.io import save
from dynkern.ternary import histogram, pack, report
from dynkern.train.loop import fit
from dynkern.train.progress import progress
from dynkern.train.recipe import Recipe
from dynkern.train.ternary import Regime, best_epoch, ternary_hooks

MODEL = "resnet_binary"
CHUNK = 250


@dataclass(frozen=True)
class Run:
    """One run: what it trains and how.

    Attributes:
        regime: how the weights become ternary.
        recipe: optimiser, rates, seed.
        batch: images per step.
        inflate: the network's channels are 16, 32 and 64 times this (5 in the paper).
    """

    regime: Regime
    recipe: Recipe
    batch: int = 256
    inflate: int = 5

    @property
    def name(self) -> str:
        """Tells this run from the others of a sweep; also its folder."""
        growth = self.regime.growth
        how = "" if growth is None else f"-delta{growth.delta0:g}"
        if growth is not None and growth.regime != "fixed":
            how += f"-m{growth.m:.4g}-cap{growth.cap:g}"
        return f"{self.regime.name}{how}-x{self.inflate}-seed{self.recipe.seed}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        named = {"batch": self.batch, "inflate": self.inflate, "model": MODEL}
        return {"regime": asdict(self.regime), "recipe": _plain(self.recipe.to_dict()), **named}

    def network(self) -> nn.Module:
        """The network before training, ternary if this run is; it follows from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            return self.regime.prepare(models.build(MODEL, inflate=self.inflate))


def carry_out(run: Run, out: Path, train: Images, test: Images, device: torch.device) -> dict[str, Any]:
    """Train, or continue; then pack, compare and write down. A run that is finished is only read.

    Its folder ``out / run.name`` gets ``run.pt``, the state after the last epoch; ``net.safetensors`` and, of a ternary
    network, ``packed.safetensors``; and ``result.json``, which :func:`carry_out` returns.

    Raises:
        ValueError: the folder is of another run.
    """
    folder = out / run.name
    file = folder / "result.json"
    asked = run.to_dict() | {"train_images": len(train), "test_images": len(test)}
    if file.is_file():
        found = read(file)
        if found.get("run") != asked:
            raise ValueError(f"{file}: is the result of another run; choose another folder, or remove it")
        return found
    folder.mkdir(parents=True, exist_ok=True)
    net = run.network().to(device)
    history = fit(
        net,
        Stream(train, run.batch, seed=run.recipe.seed),
        run.recipe,
        hooks=ternary_hooks(net, test),
        checkpoint=folder / "run.pt",
        progress=progress(run.name),
    )
    net.cpu().eval()
    save(net, folder / "net.safetensors")
    result: dict[str, Any] = {"name": run.name, "run": asked, "history": history, **_figures(history)}
    if run.regime.ternary:
        result |= _packed(net, folder, test)
    result["machine"] = machine(device)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return read(file)


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """A ``result.json``; ``ValueError`` if it is none."""
    try:
        found = json.loads(Path(file).read_text())
        if not isinstance(found, dict) or not {"name", "run", "history"} <= set(found):
            raise ValueError("expected name, run and history")
    except ValueError as error:
        raise ValueError(f"{file}: is no result of a run: {error}") from None
    return found


def machine(device: torch.device) -> dict[str, str]:
    """Where and with what a run was finished."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__,
            "dynkern": dynkern.__version__}  # fmt: skip


def _figures(history: list[dict[str, Any]]) -> dict[str, Any]:
    last, best = history[-1], best_epoch(history)
    found = {"accuracy": last["test_accuracy"], "best_accuracy": history[best - 1]["test_accuracy"]}
    found |= {"best_epoch": best, "seconds": sum(record["seconds"] for record in history)}
    return found | {name: last[name] for name in ("sparsity", "entropy", "delta") if name in last}


def _packed(net: nn.Module, folder: Path, test: Images) -> dict[str, Any]:
    """Pack ``net``; does it answer as the module does, on every image, in float32?"""
    packed = pack(net)
    save(packed, folder / "packed.safetensors")
    engine = compile(packed, torch.zeros(1, *test.images.shape[1:]))
    answers: dict[str, Callable[[Tensor], Tensor]] = {"module": net, "packed": packed, "engine": engine}
    found: dict[str, Any] = {"report": [layer.to_dict() for layer in (*report(net).layers, report(net).total)]}
    found["histogram"] = histogram(net).to_dict()
    found["files"] = {f.name: f.stat().st_size for f in sorted(folder.glob("*.safetensors"))}
    return found | agreement(answers, test)


def agreement(answers: dict[str, Callable[[Tensor], Tensor]], test: Images) -> dict[str, Any]:
    """``agree``: on how many images each answers as the first of them, and ``accuracies``, of each."""
    same, right = dict.fromkeys(answers, 0), dict.fromkeys(answers, 0)
    with torch.inference_mode():
        for images, labels in zip(test.images.split(CHUNK), test.labels.split(CHUNK), strict=True):
            x = normalize(images)
            classes = {name: call(x).argmax(1) for name, call in answers.items()}
            first = next(iter(classes.values()))
            for name, own in classes.items():
                same[name] += int((own == first).sum())
                right[name] += int((own == labels).sum())
    return {"agree": same, "accuracies": {name: count / len(test) for name, count in right.items()}}


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
    """``recipe`` as JSON gives it back: the keys of its schedule are strings."""
    schedule = recipe["schedule"]
    return {**recipe, "schedule": schedule if isinstance(schedule, str) else {str(k): v for k, v in schedule.items()}}
