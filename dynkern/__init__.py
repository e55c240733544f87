"""Kernels and drop-in PyTorch modules that make dynamic neural networks really cheaper at run time."""

import torch  # noqa: F401  (first: its OpenMP runtime is the one the extension shares)

try:
    import dynkern._C  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"dynkern's native module is not in {__path__[0]}: this is a source tree that is not built. Install it "
        "(pip install .) and run from another folder, or build it in place (CONTRIBUTING.md)"
    ) from error

from dynkern import data, models, nn, ops, quantize, subnets, ternary, train
from dynkern.checkpoint import load_checkpoint
from dynkern.count import count
from dynkern.engine import compile
from dynkern.governor import Governor
from dynkern.importers import load_slimmable
from dynkern.info import info
from dynkern.io import load, save
from dynkern.ops import TernaryWeight
from dynkern.subnets import SubNet, calibrate_bn, extract, revert, select, slim, using
from dynkern.ternary import pack, ternarize

__version__ = "0.1.0"

__all__ = [
    "Governor",
    "SubNet",
    "TernaryWeight",
    "__version__",
    "calibrate_bn",
    "compile",
    "count",
    "data",
    "extract",
    "info",
    "load",
    "load_checkpoint",
    "load_slimmable",
    "models",
    "nn",
    "ops",
    "pack",
    "quantize",
    "revert",
    "save",
    "select",
    "slim",
    "subnets",
    "ternarize",
    "ternary",
    "train",
    "using",
]
