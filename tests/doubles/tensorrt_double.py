"""TensorRT one can read: the classes we use; what is executed is ONNX Runtime on the very addresses given.

``tensorrt(...)`` makes a stand-in for the module: plain TensorRT, or TensorRT for RTX with its own parts. It
defines nothing that the real one lacks (test_tensorrt_surface.py holds it against the API surfaces), refuses
what the real one refuses, and says so the way the real one does: False, None, and a message to the logger.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

HEADER = struct.Struct("<4s28s32s")  # magic, padding, hash of version and GPU


class DataType(enum.Enum):
    FLOAT, HALF, UINT8 = np.float32, np.float16, np.uint8


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 7


class ProfilingVerbosity(enum.Enum):
    DETAILED = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ComputeCapability(enum.Enum):
    NONE, CURRENT, SM86, SM89 = 0, 1, 86, 89


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


class EngineInspector:
    """Tells each node's outputs and their types, as a plan with detailed verbosity does."""

    def __init__(self, content):
        self._content = content

    def get_engine_information(self, format):
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(self._content)).graph
        values = (*graph.value_info, *graph.output)
        types = {v.name: v.type.tensor_type.elem_type for v in values}
        words = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half"}
        layers = [
            {
                "Name": node.name,
                "LayerType": node.op_type,
                "Outputs": [
                    {"Name": name, "Format/Datatype": words.get(types.get(name), "Int")}
                    for name in node.output
                ],
            }
            for node in graph.node
        ]
        return json.dumps({"Layers": layers})


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


def dims(port) -> tuple[int, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in port.type.tensor_type.shape.dim)


def kind(port) -> DataType:
    return DataType(onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type).type)


def inside(shape, span) -> bool:
    least, _, most = span
    return len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))


class INetworkDefinition:
    def __init__(self):
        self.content, self._inputs, self._outputs = b"", [], []

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def get_input(self, index):
        port = self._inputs[index]
        return SimpleNamespace(name=port.name, dtype=kind(port), shape=dims(port))

    def get_output(self, index):
        port = self._outputs[index]
        return SimpleNamespace(name=port.name, dtype=kind(port), shape=dims(port))


class OnnxParser:
    unsupported = frozenset({"NonMaxSuppression"})

    def __init__(self, network, logger):
        self._network, self._bad = network, []

    num_errors = property(lambda self: len(self._bad))

    def get_error(self, index):
        node = self._bad[index]
        return SimpleNamespace(
            desc=lambda: "no importer for this operator",
            node_operator=lambda: node.op_type,
            node_name=lambda: node.name,
        )

    def parse(self, model):
        proto = onnx.load_from_string(model)
        self._bad = [node for node in proto.graph.node if node.op_type in self.unsupported]
        bytes_in = {p.name for p in proto.graph.input if kind(p) is DataType.UINT8}
        # The real one takes UINT8 into a cast only; found by trying.
        self._bad += [n for n in proto.graph.node if bytes_in & set(n.input) and n.op_type != "Cast"]
        self._network.content = model
        self._network._inputs, self._network._outputs = list(proto.graph.input), list(proto.graph.output)
        return not self._bad


class IOptimizationProfile:
    def __init__(self):
        self.spans = {}

    def set_shape(self, input, min, opt, max):
        self.spans[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    def __init__(self, known):
        self.known = set(known)

    def serialize(self):
        return IHostMemory(json.dumps(sorted(self.known)).encode())


class IBuilderConfig:
    profiling_verbosity = progress_monitor = None
    _measures = ""  # the GPU and version whose times a cache may hold; none may be kept where it is empty

    def __init__(self):
        self.flags, self.profiles, self.timings = {BuilderFlag.TF32}, [], None

    def create_timing_cache(self, serialized_timing_cache):
        if not self._measures:
            raise AssertionError("TensorRT for RTX would ask for a GPU here")
        return ITimingCache(json.loads(serialized_timing_cache or b"[]"))

    def set_timing_cache(self, cache, ignore_mismatch):
        fits = ignore_mismatch or all(entry.startswith(self._measures) for entry in cache.known)
        self.timings = cache if fits else self.timings
        return fits

    def get_timing_cache(self):
        return self.timings

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        wrong = any(not inside(s, span) for span in profile.spans.values() for s in span)
        self.profiles.append(profile)
        return -1 if wrong else len(self.profiles) - 1


class IBuilderConfigRtx(IBuilderConfig):
    num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability, index):
        if not 0 <= index < self.num_compute_capabilities:
            raise ValueError(index)


class IHostMemory(bytes):
    pass


class IRuntimeCache:
    def __init__(self):
        self.shapes: set[tuple[int, ...]] = set()

    def serialize(self):
        return IHostMemory(json.dumps(sorted(self.shapes)).encode())

    def deserialize(self, blob):
        self.shapes = {tuple(shape) for shape in json.loads(blob)}
        return True


class IRuntimeConfig:
    def __init__(self):
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class IRuntimeConfigRtx(IRuntimeConfig):
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self):
        super().__init__()
        self.cache = None

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine, config):
        self._engine, self._config = engine, config
        self._shapes, self._addresses, self._scratch = {}, {}, None

    def set_input_shape(self, name, shape):
        self._shapes[name] = tuple(shape)
        return inside(shape, self._engine.spans[name])

    def infer_shapes(self):
        return [name for name in self._engine.spans if name not in self._shapes]

    def get_tensor_shape(self, name):
        if name in self._shapes:
            return self._shapes[name]
        return self._engine._shape_for(name, self._shapes)

    def _managed(self):
        if self._config.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise RuntimeError("the runtime allocates by itself under this strategy")

    def update_device_memory_size_for_shapes(self):
        self._managed()
        return 4 * int(np.prod(self._shapes["stack"]))

    def set_device_memory(self, memory, size):
        self._managed()
        self._scratch = (memory, size)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = int(memory)
        return name in self._engine.ports

    def execute_async_v3(self, stream_handle):
        engine, log = self._engine, self._engine.logger.log
        if self._addresses.keys() != engine.ports.keys():
            log(ILogger.ERROR, "not every address is set")
            return False
        if self._config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED:
            wanted = self.update_device_memory_size_for_shapes()
            if self._scratch is None or self._scratch[1] < wanted:
                log(ILogger.ERROR, "no scratch memory, or too little")
                return False
        if engine.refuses_to_run:
            log(ILogger.ERROR, "kernel launch failed")
            return False
        shapes = self._shapes or {name: span[1] for name, span in engine.spans.items()}
        addresses, shapes, scratch = dict(self._addresses), dict(shapes), self._scratch
        engine.driver.queue(int(stream_handle), lambda: self._execute(addresses, shapes, scratch))
        return True

    def _execute(self, addresses, shapes, scratch):
        engine, view = self._engine, self._engine.driver.view
        cache = getattr(self._config, "cache", None)
        if cache is not None and "stack" in shapes and shapes["stack"] not in cache.shapes:
            cache.shapes.add(shapes["stack"])
            engine.trt.compiled += 1
        if scratch is not None:
            view(*scratch)[:] = b"\xcd" * scratch[1]
        feeds = {}
        for name, shape in shapes.items():
            dtype = np.dtype(kind(engine.ports[name]).value)
            memory = view(addresses[name], int(np.prod(shape)) * dtype.itemsize)
            feeds[name] = np.frombuffer(bytes(memory), dtype).reshape(shape)
        names = [name for name in engine.ports if name not in shapes]
        for name, values in zip(names, engine.session.run(names, feeds), strict=True):
            view(addresses[name], values.nbytes)[:] = values.tobytes()
        engine.trt.executed += 1


class ICudaEngine:
    device_memory_size_v2 = 0

    def __init__(self, trt, logger, content, spans, driver):
        self.trt, self.logger, self.driver, self.spans = trt, logger, driver, spans
        self._content, self._inferred = content, {}
        graph = onnx.load_from_string(content).graph
        self.ports = {port.name: port for port in (*graph.input, *graph.output)}
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.refuses_to_run = trt.refuses_to_run

    num_io_tensors = property(lambda self: len(self.ports))

    def _shape_for(self, name, shapes):
        """Of an output, found by ONNX's own shape inference."""
        if shapes["stack"] not in self._inferred:
            model = onnx.load_from_string(self._content)
            del model.graph.value_info[:]
            for port in model.graph.input:
                for dim, size in zip(port.type.tensor_type.shape.dim, shapes[port.name], strict=True):
                    dim.dim_value = size
            for port in model.graph.output:
                port.type.tensor_type.ClearField("shape")
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
            self._inferred[shapes["stack"]] = {port.name: dims(port) for port in inferred.output}
        return self._inferred[shapes["stack"]][name]

    def get_tensor_name(self, index):
        return list(self.ports)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.spans else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return kind(self.ports[name])

    def get_tensor_profile_shape(self, name, profile_index):
        if profile_index != 0:
            raise IndexError(profile_index)
        return list(self.spans[name])

    def create_engine_inspector(self):
        return EngineInspector(self._content)

    def create_runtime_config(self):
        return self.trt.runtime_config()

    def create_execution_context(self, runtime_config):
        return IExecutionContext(self, runtime_config)


class Builder:
    def __init__(self, trt, logger):
        self._trt = trt

    def create_network(self, flags):
        if not flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise ValueError("weakly typed")
        return INetworkDefinition()

    def create_builder_config(self):
        return self._trt.config()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            if not all(monitor.step_complete("Building engine", step) for step in range(2)):
                return None
            monitor.phase_finish("Building engine")
        self._trt.built += 1
        self._trt.flags = set(config.flags)
        if config.timings is not None:
            entry = f"{config._measures} {hashlib.sha256(network.content).hexdigest()[:8]}"
            self._trt.timed += entry not in config.timings.known
            config.timings.known.add(entry)
        fixed = {port.name: (dims(port),) * 3 for port in network._inputs}
        spans = json.dumps(config.profiles[0].spans if config.profiles else fixed).encode()
        header = HEADER.pack(b"vtrt", b"", self._trt.mark)
        return IHostMemory(header + struct.pack("<I", len(spans)) + spans + network.content)


class Runtime:
    def __init__(self, trt, logger):
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine):
        if serialized_engine[:4] != b"vtrt" or HEADER.unpack_from(serialized_engine)[2] != self._trt.mark:
            self._logger.log(ILogger.ERROR, "the plan was built by another version or for another GPU")
            return None
        (length,) = struct.unpack_from("<I", serialized_engine, HEADER.size)
        start = HEADER.size + 4
        spans = json.loads(serialized_engine[start : start + length])
        spans = {name: tuple(tuple(s) for s in span) for name, span in spans.items()}
        content = serialized_engine[start + length :]
        return ICudaEngine(self._trt, self._logger, content, spans, self._trt.driver)


class RuntimeRtx(Runtime):
    engine_header_size = HEADER.size

    def get_engine_validity(self, buffer):
        if HEADER.unpack(buffer)[2] == self._trt.mark:
            return EngineValidity.VALID, 0
        self._logger.log(ILogger.ERROR, "the plan was built by another version")
        return EngineValidity.INVALID, 0


SHARED = (DataType, TensorIOMode, NetworkDefinitionCreationFlag, BuilderFlag, ProfilingVerbosity)
SHARED += (
    ExecutionContextAllocationStrategy,
    IBuilderConfig,
    ILogger,
    IProgressMonitor,
    OnnxParser,
    ICudaEngine,
    IExecutionContext,
    EngineInspector,
    LayerInformationFormat,
)
RTX_ONLY = (ComputeCapability, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy)
RTX_ONLY += (EngineValidity, IRuntimeCache)


def tensorrt(driver, *, rtx, version="1.7.1.116"):
    """A stand-in for the module ``tensorrt_rtx`` or ``tensorrt``, on a GPU of ``cuda_double.Driver``.

    ``built``, ``executed``, ``compiled`` and ``timed`` count; ``flags`` are those of the last build;
    ``refuses_to_run`` makes execution fail.
    """
    gpu = "" if rtx else driver.name
    trt = SimpleNamespace(**{c.__name__: c for c in (*SHARED, *(RTX_ONLY if rtx else ()))})
    trt.__name__, trt.__version__ = "tensorrt_rtx" if rtx else "tensorrt", version
    trt.driver, trt.mark = driver, hashlib.sha256(f"{version} {gpu}".encode()).digest()
    trt.config = (
        IBuilderConfigRtx if rtx else type("Config", (IBuilderConfig,), {"_measures": f"{version} {gpu}"})
    )
    trt.runtime_config = IRuntimeConfigRtx if rtx else IRuntimeConfig
    trt.Builder, trt.Runtime = partial(Builder, trt), partial(RuntimeRtx if rtx else Runtime, trt)
    trt.executed = trt.compiled = trt.built = trt.timed = 0
    trt.refuses_to_run = False
    return trt
