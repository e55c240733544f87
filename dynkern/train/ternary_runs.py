"""The runs of ternary training: what each trains, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynkern import models
from dynkern.data import Images, normalize
from dynkern.engine import compile
from dynkern.io import save
from dynkern.ternary import histogram, pack, report
from dynkern.train.evaluate import accuracy
from dynkern.train.loop import History
from dynkern.train.recipe import Recipe
from dynkern.train.suite import GLANCE, Context, Job
from dynkern.train.ternary import Regime, best_epoch, ternary_hooks

MODEL = "resnet_binary"
CHUNK = 250


@dataclass(frozen=True)
class Run:
    """One run: what it trains and how.

    Attributes:
        regime: how the weights become ternary.
        recipe: optimiser, rates, seed.
        inflate: the network's channels are 16, 32 and 64 times this (5 in the paper).
    """

    regime: Regime
    recipe: Recipe
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
        recipe = {"regime": asdict(self.regime), "recipe": _plain(self.recipe.to_dict())}
        return {"model": MODEL, "inflate": self.inflate, **recipe}

    def network(self) -> nn.Module:
        """The network before training, ternary if this run is; it follows from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            return self.regime.prepare(models.build(MODEL, inflate=self.inflate))

    def job(self) -> Job:
        """This run as one of a suite; see :func:`train`."""
        about = f"{MODEL}, inflate {self.inflate}, {self.regime.name}"
        return Job(self.name, about, lambda context, name: train(self, context))


def train(run: Run, context: Context) -> dict[str, Any]:
    """Train, or continue; then pack, and compare.

    The run's folder gets ``net.safetensors`` and, of a ternary network, ``packed.safetensors``.

    Returns:
        What :func:`dynkern.train.suite.run` writes to ``result.json``, as plain values.
    """
    net = run.network().to(context.device)
    hooks = ternary_hooks(net, context.test.first(GLANCE))
    history = context.fit(run.name, net, run.recipe, hooks=hooks)
    net.cpu().eval()
    save(net, context.file(run.name, "net.safetensors"))
    found = {"name": run.name, "run": settings(run, context), **_figures(history)}
    found |= {"device": context.device.type, "threads": torch.get_num_threads(), "history": history}
    if not run.regime.ternary:
        return found | {"accuracy": accuracy(net, context.test)}
    return found | _packed(net, context.file(run.name, ""), context.test)


def settings(run: Run, context: Context) -> dict[str, Any]:
    """All that the result of ``run`` follows from, as plain values."""
    sizes = {"train_images": len(context.train), "test_images": len(context.test), "batch": context.batch}
    return run.to_dict() | sizes


def check(runs: Sequence[Run], context: Context) -> None:
    """Refuse a folder in which a finished run of the same name was made otherwise (``ValueError``)."""
    for run in runs:
        found = context.result(run.name)
        if found is not None and found.get("run") != settings(run, context):
            file = context.file(run.name, "result.json")
            raise ValueError(f"{file}: is the result of another run; choose another folder, or remove it")


def _figures(history: History) -> dict[str, Any]:
    last, best = history[-1], best_epoch(history)
    found = {"best_epoch": best, "best_glance": history[best - 1]["test_accuracy"]}
    found["seconds"] = sum(record["seconds"] for record in history)
    return found | {name: last[name] for name in ("sparsity", "entropy", "delta") if name in last}


def _packed(net: nn.Module, folder: Path, test: Images) -> dict[str, Any]:
    """Pack ``net``; does it answer as the module does, on every image, in float32?"""
    packed = pack(net)
    save(packed, folder / "packed.safetensors")
    answers: dict[str, Callable[[Tensor], Tensor]] = {"module": net, "packed": packed}
    answers["engine"] = compile(packed, torch.zeros(1, *test.images.shape[1:]))
    found = agreement(answers, test)
    layers = report(net)
    return found | {
        "accuracy": found["accuracies"]["module"],
        "report": [layer.to_dict() for layer in (*layers.layers, layers.total)],
        "histogram": histogram(net).to_dict(),
        "files": {f.name: f.stat().st_size for f in sorted(folder.glob("*.safetensors"))},
    }


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
