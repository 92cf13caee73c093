"""A small ONNX graph of fixed shapes, built and run once: does this runtime compute rightly?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.tensorrt.api import Flavour, Messages
from acq_isl.engines.tensorrt.compile import parse
from acq_isl.engines.tensorrt.cuda import Device
from acq_isl.errors import EngineError

_WAIT_S = 30.0
_POISON = 0xFF  # in every byte it is a NaN that no computation gives


def build_raw(flavour: Flavour, content: bytes) -> bytes:
    """The plan of a graph whose inputs have fixed shapes; errors as of `parse`."""
    messages = Messages(flavour)
    builder, network = parse(flavour, content, messages)
    config = builder.create_builder_config()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed(flavour, "build the graph", messages)
    return bytes(plan)


def run_raw(
    flavour: Flavour, plan: bytes, device: Device, inputs: Mapping[str, NDArray[np.float32]],
    outputs: Mapping[str, tuple[int, ...]],
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Its float32 outputs, of the given shapes; what it does not write is NaN."""
    messages = Messages(flavour)
    runtime = flavour.trt.Runtime(messages.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _failed(flavour, "load the graph", messages)
    context = engine.create_execution_context(engine.create_runtime_config())
    if context is None:
        raise _failed(flavour, "prepare the graph", messages)
    with ExitStack() as freeing:
        stream, done = device.stream(), device.event()
        freeing.callback(device.free_event, done)
        shapes = {name: values.shape for name, values in inputs.items()} | dict(outputs)
        host = {name: _pinned(device, shape, freeing) for name, shape in shapes.items()}
        address: dict[str, int] = {}
        for name, memory in host.items():
            address[name] = device.allocate(memory.nbytes)
            freeing.callback(device.free, address[name])
            if name in inputs:
                memory[:] = inputs[name]
            device.copy_up(address[name], memory, stream)
            if not context.set_tensor_address(name, address[name]):
                raise _failed(flavour, f"take the address of {name}", messages)
        if not context.execute_async_v3(int(stream)):
            raise _failed(flavour, "run the graph", messages)
        for name in outputs:
            device.copy_down(host[name], address[name], stream)
        device.record(done, stream)
        device.wait(done, _WAIT_S)
        return {name: host[name].copy() for name in outputs}


def _pinned(device: Device, shape: tuple[int, ...], freeing: ExitStack) -> NDArray[np.float32]:
    memory = device.pinned(4 * int(np.prod(shape)))
    freeing.callback(device.free_pinned, memory)
    memory.fill(_POISON)
    return memory.view(np.float32).reshape(shape)


def _failed(flavour: Flavour, what: str, messages: Messages) -> EngineError:
    return EngineError(
        f"{flavour.name} {flavour.version} could not {what}",
        got=messages.take() or "no reason given",
        fix="update TensorRT and the NVIDIA driver, or predict with another engine",
    )
