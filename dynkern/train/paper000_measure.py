"""What is measured of the trained networks of paper 000: integers (table 1) and latency (figure 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from dynkern import models
from dynkern.aware import aware
from dynkern.bench.timer import interleave
from dynkern.data import normalize
from dynkern.engine import Compiled, compile
from dynkern.engine.ranges import calibrate
from dynkern.io import load, save
from dynkern.train.evaluate import accuracy
from dynkern.train.fused import fused
from dynkern.train.suite import Context

# Training images that ranges are measured on.
CALIBRATION = 512
AWARE_EPOCHS, AWARE_LR = 1, 0.005
BATCHES = (1, 32)
SECONDS = 20.0


def integers(source: str, teacher: str) -> Callable[[Context, str], dict[str, Any]]:
    """A run that evaluates network ``source`` in integers, as it is and after training that knows of them."""

    def run(context: Context, job: str) -> dict[str, Any]:
        net = _loaded(context, source)
        found = {str(bits): _engine_accuracies(context, net, bits) for bits in (32, 16, 8)}
        guide = load(models.resnet32(num_classes=context.train.classes), context.file(teacher, "net.safetensors"))
        recipe = replace(context.recipe, epochs=AWARE_EPOCHS, lr=AWARE_LR)
        net = _loaded(context, source).to(context.device)
        with aware(net, 8):
            history = context.fit(job, net, recipe, fused(teacher=guide.to(context.device)))
        net = net.cpu().eval()
        save(net, context.file(job, "net.safetensors"))
        return {
            "post_training": found,
            "aware": {str(bits): _engine_accuracies(context, net, bits) for bits in (32, 8)},
            "recipe": recipe.to_dict(),
            "calibration_images": min(CALIBRATION, len(context.train)),
            "test_images": len(context.test),
            "history": history,
        }

    return run


def latencies(*sources: str) -> Callable[[Context, str], dict[str, Any]]:
    """A run that times every sub-net of the engine on one thread; ``sources`` are the runs of the networks."""

    def run(context: Context, job: str) -> dict[str, Any]:
        rows = []
        for source in sources:
            net = _loaded(context, source)
            for bits in (32, 8):
                engine = _engine(context, net, bits)
                engine.threads = 1
                for batch in BATCHES:
                    x = normalize(context.test.first(batch).images)
                    variants = {str(key): partial(engine, x, key) for key in engine.subnets}
                    measured = interleave(variants, budget_s=SECONDS / len(sources))
                    rows += [
                        {
                            "network": source,
                            "subnet": key,
                            "bits": bits,
                            "batch": len(x),
                            "threads": 1,
                            "ms": 1e3 * measured.quantile(key, 0.5),
                            "ms_p20": 1e3 * measured.quantile(key, 0.2),
                            "ms_p80": 1e3 * measured.quantile(key, 0.8),
                        }
                        for key in variants
                    ]
        return {"rows": rows}

    return run


def _loaded(context: Context, source: str) -> nn.Module:
    shortcut = "A" if source in ("ours-u", "s-nn") else "proj_all"
    net = models.resnet20(num_classes=context.train.classes, shortcut=shortcut)
    return load(net, context.file(source, "net.safetensors"))


def _engine(context: Context, net: nn.Module, bits: int) -> Compiled:
    x = normalize(context.train.first(CALIBRATION).images)
    if bits == 32:
        return compile(net, x[:1])
    ranges = calibrate(net, x.split(128))
    return compile(net, x[:1], int8=ranges if bits == 8 else False, int16=ranges if bits == 16 else False)


def _engine_accuracies(context: Context, net: nn.Module, bits: int) -> dict[str, float]:
    """Of each sub-net, on the engine's float or integer kernels."""
    engine = _engine(context, net, bits)
    return {str(key): accuracy(partial(engine, subnet=key), context.test) for key in engine.subnets}
