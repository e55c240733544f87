"""The table of operators: what the engine can lower, each name with the function that does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from dynkern.engine import elementwise, layers, spatial
from dynkern.engine.builder import Builder, Call, Operand

_ATEN: dict[str, Callable[[Builder, Call], Operand]] = {
    # layers
    "conv2d": layers.conv2d,
    "convolution": layers.convolution,
    "linear": layers.linear,
    "addmm": layers.addmm,
    "mm": layers.matmul,
    "matmul": layers.matmul,
    "batch_norm": layers.batch_norm,
    "_native_batch_norm_legit_no_training": layers.native_batch_norm,
    # arithmetic
    "add": elementwise.add,
    "sub": elementwise.sub,
    "rsub": elementwise.rsub,
    "mul": elementwise.mul,
    "div": elementwise.div,
    "neg": elementwise.neg,
    # activations
    "relu": elementwise.activation("clamp", 0.0, math.inf),
    "relu6": elementwise.activation("clamp", 0.0, 6.0),
    "hardtanh": elementwise.clamp,
    "clamp": elementwise.clamp,
    "clamp_min": elementwise.clamp,
    "clamp_max": elementwise.clamp,
    "gelu": elementwise.gelu,
    "silu": elementwise.activation("silu"),
    "hardswish": elementwise.activation("hardswish"),
    "hardsigmoid": elementwise.activation("hardsigmoid"),
    "sigmoid": elementwise.activation("sigmoid"),
    "tanh": elementwise.activation("tanh"),
    "softmax": elementwise.softmax(log=False),
    "_softmax": elementwise.softmax(log=False),
    "log_softmax": elementwise.softmax(log=True),
    "_log_softmax": elementwise.softmax(log=True),
    # nothing, in eval mode
    "dropout": elementwise.dropout,
    "feature_dropout": elementwise.dropout,
    "alpha_dropout": elementwise.dropout,
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy", "to", "_to_copy", "type_as"),
        elementwise.identity,
    ),
    # pooling
    "max_pool2d": spatial.max_pool2d,
    "max_pool2d_with_indices": spatial.max_pool2d_with_indices,
    "avg_pool2d": spatial.avg_pool2d,
    "adaptive_avg_pool2d": spatial.adaptive_avg_pool2d,
    "_adaptive_avg_pool2d": spatial.adaptive_avg_pool2d,
    "mean": spatial.mean,
    "amax": spatial.amax,
    # axes
    **dict.fromkeys(
        ("view", "_unsafe_view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), spatial.reshape
    ),
    "expand": spatial.expand,
    "expand_as": spatial.expand,
    "cat": spatial.cat,
    "concat": spatial.cat,
    "pad": spatial.pad,
    "constant_pad_nd": spatial.pad,
    "slice": spatial.cut,
    "narrow": spatial.narrow,
    "chunk": spatial.split,
    "split": spatial.split,
    "split_with_sizes": spatial.split,
}

_DYNKERN: dict[str, Callable[[Builder, Call], Operand]] = {
    "sliced_conv2d": layers.sliced_conv2d,
    "sliced_linear": layers.sliced_linear,
    "ternary_conv2d": layers.ternary_conv2d,
    "ternary_linear": layers.ternary_linear,
}

# By the operator's name without overload; what works in place is here under its other name.
TABLE: Mapping[str, Callable[[Builder, Call], Operand]] = MappingProxyType(
    {
        **{f"aten.{name}": function for name, function in _ATEN.items()},
        **{f"dynkern.{name}": function for name, function in _DYNKERN.items()},
    }
)
