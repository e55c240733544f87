"""The baselines: the same network or layer, run by PyTorch and by other runtimes."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynkern.bench.results import MODULES

Call = Callable[[], Tensor | np.ndarray]

# How every variant is named in tables and plots, in the order of the legend.
LABELS = {
    "engine": "dynkern engine",
    "engine_dense": "dynkern engine, dense float32",
    "engine_int8": "dynkern engine, int8",
    "engine_int16": "dynkern engine, int16",
    "dynkern": "dynkern modules",
    "eager": "PyTorch",
    "eager_sliced": "eager, sliced per call",
    "eager_extracted": "eager, extracted",
    "dynkern_int8": "dynkern, int8 activations",
    "torch_dense": "torch, dense float32",
    "torch_sparse": "torch, sparse CSR",
    "torch_int8": "torch, dynamic int8",
    "onnxruntime_int8": "ONNX Runtime, int8",
    "onnxruntime_2bit": "ONNX Runtime, 2-bit weights",
    "torch_compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino_int8": "OpenVINO, int8",
}


def label(variant: str, suite: str) -> str:
    """The name of a variant: for :data:`LABELS`, but of single layers there is only one variant of ours."""
    return "dynkern" if suite == "sparsity" and variant == MODULES else LABELS.get(variant, variant)


@dataclass(frozen=True)
class Subject:
    """A plain module in eval mode, and the input it is timed on."""

    module: nn.Module
    x: Tensor

    @cached_property
    def onnx(self) -> bytes:
        """The module in ONNX form, for inputs of just this shape."""
        file = io.BytesIO()
        with quiet():
            # The older exporter takes a tenth of the time of the newer one, and these networks need no more.
            export: Any = torch.onnx.export
            export(self.module, (self.x,), file, input_names=["x"], output_names=["y"], dynamo=False)
        return file.getvalue()

    @cached_property
    def onnx_int8(self) -> bytes:
        """The same in integers of 8 bits (quantise and dequantise nodes), calibrated on the very input.

        Weights are symmetric with a scale for each output channel, activations have a scale and zero point each.
        """
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Once(CalibrationDataReader):
            def __init__(self, x: Tensor) -> None:
                self.left = [{"x": x.numpy()}]

            def get_next(self) -> dict[str, np.ndarray] | None:
                return self.left.pop() if self.left else None

        with tempfile.TemporaryDirectory() as folder, quiet():
            plain, prepared, integers = (Path(folder, name) for name in ("plain", "prepared", "integers"))
            plain.write_bytes(self.onnx)
            quant_pre_process(plain, prepared)
            quantize_static(
                prepared,
                integers,
                Once(self.x),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return integers.read_bytes()


def eager(subject: Subject, threads: int) -> Call:
    """The module as it is."""
    module, x = subject.module, subject.x
    return lambda: module(x)


def compiled(subject: Subject, threads: int) -> Call:
    """torch.compile, with the weights frozen into the program (its fastest form for inference)."""
    module: Any = torch.compile(subject.module, options={"freezing": True})
    x = subject.x
    return lambda: module(x)


def onnxruntime(subject: Subject, threads: int) -> Call:
    """ONNX Runtime on the CPU."""
    return _onnxruntime(subject.onnx, subject.x, threads)


def onnxruntime_int8(subject: Subject, threads: int) -> Call:
    """ONNX Runtime on the CPU, in integers of 8 bits."""
    return _onnxruntime(subject.onnx_int8, subject.x, threads)


def _onnxruntime(model: bytes, x: Tensor, threads: int) -> Call:
    session = onnx_session(model, threads)
    inputs = {"x": x.numpy()}
    return lambda: session.run(None, inputs)[0]


def onnx_session(model: bytes, threads: int) -> Any:
    """ONNX Runtime with ``model``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads spin inside a call as usual, but not on into the samples of the next variant.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino(subject: Subject, threads: int) -> Call:
    """OpenVINO on the CPU, in float32 (its own default may be bfloat16)."""
    return _openvino(subject.onnx, subject.x, threads)


def openvino_int8(subject: Subject, threads: int) -> Call:
    """OpenVINO on the CPU, in integers of 8 bits where the model has them."""
    return _openvino(subject.onnx_int8, subject.x, threads)


def _openvino(model: bytes, x: Tensor, threads: int) -> Call:
    import openvino as ov

    core = ov.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    inputs = [x.numpy()]
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


def sparse(subject: Subject, threads: int) -> Call:
    """A linear layer as PyTorch's sparse matrix (CSR) times the dense input; the transposes are part of it."""
    if not isinstance(subject.module, nn.Linear) or subject.module.bias is not None:
        raise TypeError(f"subject: expected a Linear layer without bias, got {subject.module}")
    with quiet():
        weight = subject.module.weight.detach().to_sparse_csr()
    x = subject.x
    return lambda: (weight @ x.t()).t()


@dataclass(frozen=True)
class Peer:
    """A baseline that may be missing.

    Attributes:
        variant: its key in :data:`LABELS`.
        package: what must be importable.
        build: prepares it; what it returns is timed.
        int8: the same in integers, if it has them.
    """

    variant: str
    package: str
    build: Callable[[Subject, int], Call]
    int8: Callable[[Subject, int], Call] | None = None


# By the name that ``--peers`` takes.
OPTIONAL = {
    "torch.compile": Peer("torch_compile", "torch", compiled),
    "onnxruntime": Peer("onnxruntime", "onnxruntime", onnxruntime, onnxruntime_int8),
    "openvino": Peer("openvino", "openvino", openvino, openvino_int8),
}


@dataclass(frozen=True)
class Choice:
    """The optional baselines of a run.

    Attributes:
        wanted: those that run.
        everywhere: they were asked for by name, so torch.compile runs at every point and dense runtimes at every share.
        absent: why the others do not run, by variant.
    """

    wanted: tuple[Peer, ...]
    everywhere: bool
    absent: dict[str, str]


def none(why: str) -> Choice:
    """No optional baseline, and why."""
    return Choice((), False, {peer.variant: why for peer in OPTIONAL.values()})


def choose(text: str) -> Choice:
    """Read ``--peers``: ``auto`` (what is installed), ``none``, or names from :data:`OPTIONAL` with commas between."""
    if text == "none":
        return none("not asked for")
    names = list(OPTIONAL) if text == "auto" else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in OPTIONAL]
    if unknown:
        raise ValueError(f"peers: expected 'auto', 'none' or some of {', '.join(OPTIONAL)}, got {', '.join(unknown)!r}")
    wanted, absent = [], {}
    for name, peer in OPTIONAL.items():
        if name not in names:
            absent[peer.variant] = "not asked for"
        elif importlib.util.find_spec(peer.package) is None:
            absent[peer.variant] = f"{peer.package} is not installed (pip install 'dynkern[peers]')"
        else:
            wanted.append(peer)
    return Choice(tuple(wanted), text != "auto", absent)


class SliceConv2d(nn.Conv2d):
    """A convolution of a sub-net as slimmable networks write it: the full weight is sliced in every call."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H', W')."""
        bias = None if self.bias is None else self.bias[: self.out_channels]
        return self._conv_forward(x, self.weight[: self.out_channels, : self.in_channels // self.groups], bias)


class SliceLinear(nn.Linear):
    """A linear layer of a sub-net; see :class:`SliceConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        bias = None if self.bias is None else self.bias[: self.out_features]
        return F.linear(x, self.weight[: self.out_features, : self.in_features], bias)


def sliced_twin(net: nn.Module, plain: nn.Module) -> nn.Module:
    """The extracted module ``plain`` with every weight sliced, in each call, from the full one in ``net``.

    Only for sub-nets whose channels are the first ones of every layer. ``plain`` itself stays as it is.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: SliceConv2d, nn.Linear: SliceLinear}
    twin = copy.deepcopy(plain)
    for name, layer in twin.named_modules():
        if type(layer) in kinds:
            full = net.get_submodule(name)
            layer.weight, layer.bias = full.weight, full.bias
            layer.__class__ = kinds[type(layer)]
    return twin


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and log lines, which would run into the progress bar."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
