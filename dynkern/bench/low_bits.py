"""Baselines of linear layers whose activations are quantised to 8 bits in every call; weights are -1, 0 and +1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from dynkern.bench.peers import Call, Peer, Subject, onnx_session, quiet

# Weights of a block of MatMulNBits share a scale; 128 was the fastest size.
BLOCK = 128


def torch_int8(subject: Subject, threads: int) -> Call:
    """torch's dynamically quantised layer, by oneDNN."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        with quiet():
            net = nn.Sequential(_linear(subject))
            module = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    finally:
        torch.backends.quantized.engine = before
    x = subject.x
    return lambda: module(x)


def onnxruntime_int8(subject: Subject, threads: int) -> Call:
    """ONNX Runtime's DynamicQuantizeMatMul."""
    weight = _linear(subject).weight.detach().numpy().T
    constants = {"w": (weight * 127).astype(np.int8).copy(), "s": np.array(1 / 127, np.float32)}
    return _run("DynamicQuantizeMatMul", constants, subject, threads)


def onnxruntime_2bit(subject: Subject, threads: int) -> Call:
    """ONNX Runtime's MatMulNBits with 2 bits a weight, computing in int8."""
    weight = _linear(subject).weight.detach().numpy()
    outputs, inputs = weight.shape
    if inputs % BLOCK:
        raise ValueError(f"subject: expected a multiple of {BLOCK} inputs, got {inputs}")
    blocks = inputs // BLOCK
    codes = (weight + 1).astype(np.uint8).reshape(outputs, blocks, BLOCK // 4, 4)
    constants = {
        "w": np.bitwise_or.reduce(codes << np.array([0, 2, 4, 6], np.uint8), axis=3).astype(np.uint8),
        "s": np.ones(outputs * blocks, np.float32),
        "z": np.full(outputs * ((blocks + 3) // 4), 0b01010101, np.uint8),
    }
    shape = {"K": inputs, "N": outputs, "bits": 2, "block_size": BLOCK, "accuracy_level": 4}
    return _run("MatMulNBits", constants, subject, threads, shape)


PEERS = (
    Peer("torch_int8", "torch", torch_int8),
    Peer("onnxruntime_int8", "onnxruntime", onnxruntime_int8),
    Peer("onnxruntime_2bit", "onnxruntime", onnxruntime_2bit),
)


def _linear(subject: Subject) -> nn.Linear:
    if not isinstance(subject.module, nn.Linear) or subject.module.bias is not None:
        raise TypeError(f"subject: expected a Linear layer without bias, got {subject.module}")
    return subject.module


def _run(
    operator: str,
    constants: dict[str, np.ndarray],
    subject: Subject,
    threads: int,
    attributes: dict[str, Any] | None = None,
) -> Call:
    """One of ONNX Runtime's own operators, on x and constants."""
    import onnx
    from onnx import helper, numpy_helper

    node = helper.make_node(operator, ["x", *constants], ["y"], domain="com.microsoft", **(attributes or {}))
    layer = _linear(subject)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, layer.in_features])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, layer.out_features])
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "layer", [x], [y], stored)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=8)
    session = onnx_session(model.SerializeToString(), threads)
    inputs = {"x": subject.x.numpy()}
    return lambda: session.run(None, inputs)[0]
