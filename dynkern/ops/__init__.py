"""The operators: one function per kernel, usable alone."""

from dynkern.ops import break_even
from dynkern.ops.sliced_conv2d import sliced_conv2d
from dynkern.ops.sliced_linear import sliced_linear
from dynkern.ops.ternary_conv2d import ternary_conv2d
from dynkern.ops.ternary_linear import ternary_linear
from dynkern.ops.ternary_weight import TernaryWeight

break_even.install(break_even.TABLES)

__all__ = ["TernaryWeight", "sliced_conv2d", "sliced_linear", "ternary_conv2d", "ternary_linear"]
