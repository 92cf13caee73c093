"""OpenVINO on the CPU: the fastest engine without a GPU. An extra, used by itself where it is installed."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import properties

from acq_isl.engines.backend import default_threads
from acq_isl.engines.gate import Policy
from acq_isl.engines.graph_tags import IMAGES, BackgroundTags
from acq_isl.engines.model_file import ModelFile, output_names, read_model
from acq_isl.engines.openvino.background import plane_graph
from acq_isl.engines.openvino.cache import CompiledCache, CompiledKey
from acq_isl.engines.openvino.parts import (
    DEVICE,
    NORMALISED,
    RUNTIME_ERRORS,
    Precision,
    default_precision,
    first_line,
    has_bf16,
    processor,
    read_parts,
)
from acq_isl.engines.predictor import TILE_PX, Predictor
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

__all__ = ["OpenVinoEngine", "OpenVinoNetwork", "Precision", "default_precision", "has_bf16", "processor"]

_MOST_SHAPES = 3
_Shape = tuple[int, ...]
_Planes = tuple[tuple[Any, ...], ...]  # tensors, by tile and plane


@dataclass(slots=True, eq=False)
class _Requests:
    """Compiled parts for tiles of one shape, which read and write the same memory."""

    trunk: Any
    front: Any = None
    gate: Any = None
    planes: _Planes = ()
    """If not empty, ``front`` takes one plane of one tile and writes it here."""
    memory: Any = None
    """What the requests point to."""
    gate_images: tuple[str, ...] = ()
    """Of the images, those that the gate takes."""
    fresh: bool = True
    """Never run: what it does not write must not pass for an answer."""


class OpenVinoNetwork:
    """One model on the CPU. `run` may be called from several threads; they take turns.

    Compiled for each shape of tiles when it first comes, which is a seventh faster than for any shape, and
    kept on disk. Parameters are those of `OpenVinoEngine`.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        trunk: tuple[bytes, ...] | None = None,
        cache: CompiledCache | None = None,
    ) -> None:
        self._precision = precision or default_precision(model)
        self.threads = default_threads() if threads is None else max(threads, 1)
        self.name, self.outputs = f"openvino cpu {self._precision}", output_names(model.info.manifest)
        self._model = model
        self._trunk_sha256 = hashlib.sha256(b"".join(trunk)).hexdigest() if trunk else ""
        self._cache = cache or CompiledCache()
        self._lock = threading.Lock()  # guards the requests, and lets one stack at a time have all cores
        self._requests: OrderedDict[_Shape, _Requests] = OrderedDict()
        self._core: Any = openvino.Core()
        self._low = self._precision != "fp32" and has_bf16()
        self._parts = read_parts(self._core, model, self._precision, trunk, low=self._low)

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer a batch of tiles; see `acq_isl.engines.predictor.Network`."""
        with self._lock:
            if self._core is None:
                raise EngineError("the engine is closed", fix="load the engine again")
            try:
                return self._run(self._for_shape(tiles.shape), tiles, inv_sd)
            except RUNTIME_ERRORS as error:
                raise EngineError(
                    f"OpenVINO failed on tiles of {tiles.shape}: {first_line(error)}",
                    fix="if memory ran out, use smaller tiles or close other programs",
                ) from error

    def close(self) -> None:
        with self._lock:
            self._requests.clear()
            self._core = None

    def _run(
        self, requests: _Requests, tiles: NDArray[np.uint8], inv_sd: Float32Image
    ) -> tuple[Float32Image, ...]:
        trunk, gate = requests.trunk, requests.gate
        data: NDArray[Any] = tiles.view("<u2")[..., 0] if self._parts.takes_counts else tiles
        data = np.ascontiguousarray(data)
        out = []
        for name in self.outputs[: None if gate is None else -1]:  # the distance is the last of them
            values = np.empty(tuple(trunk.get_tensor(name).shape), np.float32)
            if requests.fresh:
                values.fill(np.nan)
            trunk.set_tensor(name, openvino.Tensor(values, shared_memory=True))
            out.append(values)
        if requests.planes:
            self._normalise(requests, data, inv_sd)
        else:
            first = requests.front or trunk
            first.set_tensor("stack", openvino.Tensor(data, shared_memory=True))
            first.set_tensor("inv_sd", openvino.Tensor(np.ascontiguousarray(inv_sd), shared_memory=True))
            if requests.front is not None:
                requests.front.infer()
        trunk.infer()
        requests.fresh = False
        if gate is not None:
            for name in requests.gate_images:  # their tensors are new in every run
                gate.set_tensor(name, trunk.get_tensor(name))
            gate.infer()
            out.append(np.array(gate.get_tensor(self.outputs[-1]).data))
        return tuple(out)

    def _normalise(self, requests: _Requests, counts: NDArray[Any], inv_sd: Float32Image) -> None:
        """Run the front on every plane of every tile."""
        front, shape = requests.front, tuple(requests.planes[0][0].shape)
        for tile, targets, contrast in zip(counts, requests.planes, inv_sd, strict=True):
            front.set_tensor("inv_sd", openvino.Tensor(np.full(1, contrast, np.float32)))
            for plane, target in zip(tile, targets, strict=True):
                front.set_tensor("stack", openvino.Tensor(plane.reshape(shape), shared_memory=True))
                front.set_output_tensor(target)
                front.infer()

    def _for_shape(self, shape: _Shape) -> _Requests:
        if shape not in self._requests:
            while len(self._requests) >= _MOST_SHAPES:
                self._requests.popitem(last=False)
            self._requests[shape] = self._compile(shape)
        self._requests.move_to_end(shape)
        return self._requests[shape]

    def _compile(self, shape: _Shape) -> _Requests:
        parts = self._parts
        if parts.background is not None:
            front, planes, normalised, memory = self._compile_plane(parts.background, shape)
        elif parts.front is not None:
            ports = {"stack": list(shape[:4]), "inv_sd": list(shape[:1])}
            front, planes, memory = self._request(parts.front, "front", shape, ports), (), None
            normalised = front.get_output_tensor(0)
        else:
            ports = {"stack": list(shape), "inv_sd": list(shape[:1])}
            return _Requests(self._request(parts.trunk, "whole", shape, ports))
        trunk = self._request(parts.trunk, "trunk", shape, {NORMALISED: list(normalised.shape)})
        trunk.set_input_tensor(normalised)
        gate = None
        images: tuple[str, ...] = ()
        if parts.gate is not None:
            names = [port.get_any_name() for port in parts.gate.inputs]
            tensors = {name: normalised if name == NORMALISED else trunk.get_tensor(name) for name in names}
            ports = {name: list(tensor.shape) for name, tensor in tensors.items()}
            gate = self._request(parts.gate, "gate", shape, ports)
            for name, tensor in tensors.items():
                gate.set_tensor(name, tensor)
            images = tuple(name for name in names if name in IMAGES)
        return _Requests(trunk, front, gate, planes, (normalised, memory), gate_images=images)

    def _compile_plane(
        self, background: BackgroundTags, shape: _Shape
    ) -> tuple[Any, _Planes, Any, NDArray[Any]]:
        """The request for one plane, where each plane of each tile goes, and all of them as one tensor."""
        height, width = shape[2:4]
        front = self._request(plane_graph(background, height, width, low=self._low), "plane", shape, None)
        kind = openvino.Type.bf16 if self._low else openvino.Type.f32
        memory = np.zeros(shape[:4], np.uint16 if self._low else np.float32)
        rows = openvino.Shape([height // background.block_px, 1, background.block_px, width])
        planes = tuple(
            tuple(openvino.Tensor(plane.reshape(rows), rows, kind) for plane in tile) for tile in memory
        )
        return front, planes, openvino.Tensor(memory, openvino.Shape(shape[:4]), kind), memory

    def _request(self, graph: Any, part: str, shape: _Shape, ports: dict[str, list[int]] | None) -> Any:
        """A request for a part of the network, from the cache or compiled and kept there."""
        bf16 = part == "trunk" and self._low
        settings = {
            properties.hint.inference_precision: openvino.Type.bf16 if bf16 else openvino.Type.f32,
            properties.hint.enable_cpu_pinning: False,  # so that threads can make room for the camera's
            properties.inference_num_threads: self.threads,
            properties.num_streams: 1,
        }
        key = CompiledKey(
            model_sha256=self._model.info.sha256,
            trunk_sha256=self._trunk_sha256 if part == "trunk" else "",
            part=part,
            precision=self._precision,
            threads=self.threads,
            shape=shape,
            runtime=f"openvino {openvino.get_version()} on {processor()}",
        )

        def compile_part() -> Any:
            sized = graph.clone()
            if ports is not None:
                sized.reshape(ports)
            return self._core.compile_model(sized, DEVICE, settings)

        def load(content: bytes) -> Any:
            return self._core.import_model(content, DEVICE, settings)

        return self._cache.get(key, load, compile_part).create_infer_request()


class OpenVinoEngine(Predictor):
    """A model file, ready to predict on the CPU with OpenVINO; int8 needs a quantised ``trunk``, XML and
    weights.

    ModelError if the file is missing, damaged or beyond OpenVINO, EngineError if it cannot be run.
    """

    def __init__(
        self,
        model: ModelFile | Path | str,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        trunk: tuple[bytes, ...] | None = None,
        tile_px: int | None = TILE_PX,
        gate: Policy = "refuse",
    ) -> None:
        file = model if isinstance(model, ModelFile) else read_model(model)
        network = OpenVinoNetwork(file, precision=precision, threads=threads, trunk=trunk)
        super().__init__(file.info, network, tile_px=tile_px, gate=gate)
