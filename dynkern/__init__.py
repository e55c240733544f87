"""Kernels and drop-in PyTorch modules that make dynamic neural networks really cheaper at run time."""

import torch  # noqa: F401  (first: its OpenMP runtime is the one the extension shares)

from dynkern import ops

__version__ = "0.1.0"
