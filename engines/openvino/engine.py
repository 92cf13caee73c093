"""OpenVINO on the CPU: the fastest engine without a GPU. An extra, used by itself where it is installed."""

from __future__ import annotations

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
from acq_isl.engines.model_file import ModelFile, answers, read_model
from acq_isl.engines.openvino.background import Background, plane_graph
from acq_isl.engines.openvino.cache import CompiledCache, CompiledKey
from acq_isl.engines.openvino.form import (
    DEVICE,
    NORMALISED,
    RUNTIME_ERRORS,
    Precision,
    first_line,
    has_bf16,
    processor,
    read_form,
)
from acq_isl.engines.predictor import TILE_PX, Predictor
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

__all__ = ["OpenVinoEngine", "OpenVinoNetwork", "Precision", "has_bf16", "processor"]

_SHAPES_KEPT = 3


@dataclass(slots=True, eq=False)
class _Ready:
    """The network for tiles of one shape: one request, or two, the second taking what the first gives.

    If ``planes`` is not empty, the first request takes one plane of one tile and writes it there.
    """

    requests: tuple[Any, ...]
    keep: tuple[Any, ...] = ()  # tensors the requests point to
    planes: tuple[tuple[Any, ...], ...] = ()
    gate: Any = None  # request for the distances, unless they are among what the last one gives


class OpenVinoNetwork:
    """One model on the CPU. `run` may be called from several threads; they take turns.

    Compiled for each shape of tiles when it first comes, which is a seventh faster than for any shape, and
    kept on disk.

    Parameters
    ----------
    model : ModelFile
    precision : "fp32", "bf16" or "int8", optional
        bf16 where the processor has it and fp32 elsewhere, if not given. With bf16 and int8, all up to the
        division by the stack's contrast stays fp32.
    threads : int, optional
        Cores to use, `default_threads` if not given.
    trunk : bytes and bytes, optional
        What comes after that division, quantised: OpenVINO's XML and weights. Needed for int8.
    cache : CompiledCache, optional

    Raises
    ------
    ModelError
        OpenVINO cannot read the network, or there is no such form of it.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        trunk: tuple[bytes, bytes] | None = None,
        cache: CompiledCache | None = None,
    ) -> None:
        self._precision = precision or ("bf16" if has_bf16() else "fp32")
        self._threads = default_threads() if threads is None else max(threads, 1)
        self._model, self._trunk = model, trunk
        self._cache = cache or CompiledCache()
        self._outputs = answers(model.info.manifest)
        self._lock = threading.Lock()  # guards what is ready, and lets one stack at a time have all cores
        self._ready: OrderedDict[tuple[int, ...], _Ready] = OrderedDict()
        self._core: Any = openvino.Core()
        self._low = self._precision != "fp32" and has_bf16()
        self._form = read_form(self._core, model, self._precision, trunk, low=self._low)

    @property
    def name(self) -> str:
        return f"openvino cpu {self._precision}"

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    @property
    def threads(self) -> int:
        """Cores it computes on."""
        return self._threads

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

    def warm_up(self, side_px: int | None = None) -> None:
        """Run once on a tile, of the smallest size if not given, so that the first stack finds code ready."""
        rules = self._model.info.manifest
        side = -(-(side_px or rules.min_tile_px) // rules.size_step_px) * rules.size_step_px
        self.run(np.zeros((1, rules.planes, side, side, 2), np.uint8), np.ones(1, np.float32))

    def close(self) -> None:
        with self._lock:
            self._ready.clear()
            self._core = None

    def _run(self, ready: _Ready, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        first, last = ready.requests[0], ready.requests[-1]
        data: NDArray[Any] = tiles.view("<u2")[..., 0] if self._form.parts.takes_counts else tiles
        data = np.ascontiguousarray(data)
        out = []
        for name in self._outputs[: None if ready.gate is None else -1]:  # the distance is the last of them
            values = np.empty(tuple(last.get_tensor(name).shape), np.float32)
            last.set_tensor(name, openvino.Tensor(values, shared_memory=True))
            out.append(values)
        if ready.planes:
            self._normalise(ready, data, inv_sd)
        else:
            first.set_tensor("stack", openvino.Tensor(data, shared_memory=True))
            first.set_tensor("inv_sd", openvino.Tensor(np.ascontiguousarray(inv_sd), shared_memory=True))
            first.infer()
        if last is not first:
            last.infer()
        if ready.gate is not None:
            ready.gate.infer()
            out.append(np.array(ready.gate.get_tensor(self._outputs[-1]).data))
        return tuple(out)

    def _normalise(self, ready: _Ready, counts: NDArray[Any], inv_sd: Float32Image) -> None:
        """Run the first request on every plane of every tile."""
        first, shape = ready.requests[0], tuple(ready.planes[0][0].shape)
        for tile, targets, contrast in zip(counts, ready.planes, inv_sd, strict=True):
            first.set_tensor("inv_sd", openvino.Tensor(np.full(1, contrast, np.float32)))
            for plane, target in zip(tile, targets, strict=True):
                first.set_tensor("stack", openvino.Tensor(plane.reshape(shape), shared_memory=True))
                first.set_output_tensor(target)
                first.infer()

    def _for_shape(self, shape: tuple[int, ...]) -> _Ready:
        if shape not in self._ready:
            while len(self._ready) >= _SHAPES_KEPT:
                self._ready.popitem(last=False)
            self._ready[shape] = self._compile(shape)
        self._ready.move_to_end(shape)
        return self._ready[shape]

    def _compile(self, shape: tuple[int, ...]) -> _Ready:
        stack = shape[:-1] if self._form.parts.takes_counts else shape
        counts = {"stack": list(stack), "inv_sd": list(shape[:1])}
        if self._form.parts.front is None:
            return _Ready((self._compiled(self._form.parts.trunk, "whole", shape, counts),))
        if self._form.background is not None:
            return self._compile_by_planes(self._form.background, shape)
        front = self._compiled(self._form.parts.front, "front", shape, counts)
        normalised = front.get_output_tensor(0)
        trunk = self._compiled(self._form.parts.trunk, "trunk", shape, list(normalised.shape))
        trunk.set_input_tensor(normalised)
        return _Ready((front, trunk), (normalised,), gate=self._compile_gate(shape, trunk, normalised))

    def _compile_gate(self, shape: tuple[int, ...], trunk: Any, normalised: Any) -> Any:
        """A request that takes what the trunk is given and hands over; None without a gate of its own."""
        graph = self._form.gate
        if graph is None:
            return None
        names = [port.get_any_name() for port in graph.inputs]
        tensors = {n: normalised if n == NORMALISED else trunk.get_tensor(n) for n in names}
        ports = {name: list(tensor.shape) for name, tensor in tensors.items()}
        gate = self._compiled(graph, "gate", shape, ports)
        for name, tensor in tensors.items():
            gate.set_tensor(name, tensor)
        return gate

    def _compile_by_planes(self, background: Background, shape: tuple[int, ...]) -> _Ready:
        """Normalisation plane by plane, and what follows on all of them."""
        tiles, planes, height, width = shape[:4]
        graph = plane_graph(background, height, width, low=self._low)
        front = self._compiled(graph, "plane", shape, None)
        kind = openvino.Type.bf16 if self._low else openvino.Type.f32
        memory = np.zeros(shape[:4], np.uint16 if self._low else np.float32)
        one = openvino.Shape([height // background.block, 1, background.block, width])
        targets = tuple(
            tuple(openvino.Tensor(plane.reshape(one), one, kind) for plane in tile) for tile in memory
        )
        trunk = self._compiled(self._form.parts.trunk, "trunk", shape, [tiles, planes, height, width])
        normalised = openvino.Tensor(memory, openvino.Shape(shape[:4]), kind)
        trunk.set_input_tensor(normalised)
        return _Ready((front, trunk), (memory,), targets, self._compile_gate(shape, trunk, normalised))

    def _compiled(self, graph: Any, part: str, shape: tuple[int, ...], ports: Any) -> Any:
        """A request for a part of the network, from the cache or compiled and kept there."""
        low = openvino.Type.bf16 if part == "trunk" and self._low else openvino.Type.f32
        settings = {
            properties.hint.inference_precision: low,
            properties.hint.enable_cpu_pinning: False,  # so that threads can make room for the camera's
            properties.inference_num_threads: self._threads,
            properties.num_streams: 1,
        }
        key = CompiledKey(
            model_sha256=self._model.info.sha256,
            trunk=self._trunk[0] + self._trunk[1] if self._trunk and part == "trunk" else b"",
            part=part,
            precision=self._precision,
            threads=self._threads,
            shape=shape,
            runtime=f"openvino {openvino.get_version()} on {processor()}",
        )

        def compiled() -> Any:
            sized = graph.clone()
            if ports is not None:
                sized.reshape(ports)
            return self._core.compile_model(sized, DEVICE, settings)

        def load(content: bytes) -> Any:
            return self._core.import_model(content, DEVICE, settings)

        return self._cache.get(key, load, compiled).create_infer_request()


class OpenVinoEngine(Predictor):
    """A model file, ready to predict on the CPU with OpenVINO.

    Parameters
    ----------
    model : ModelFile, pathlib.Path or str
    precision, threads, trunk
        As in `OpenVinoNetwork`.
    tile_px : int or None
        Longest tile side; it bounds memory. None infers any field in one piece.
    gate : "refuse" or "warn"
        What becomes of a stack that looks unlike the training set.

    Raises
    ------
    ModelError
        The file is missing, damaged, not an acq-isl model, or beyond OpenVINO.
    EngineError
        The network cannot be run.
    """

    def __init__(
        self,
        model: ModelFile | Path | str,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        trunk: tuple[bytes, bytes] | None = None,
        tile_px: int | None = TILE_PX,
        gate: Policy = "refuse",
    ) -> None:
        file = model if isinstance(model, ModelFile) else read_model(model)
        network = OpenVinoNetwork(file, precision=precision, threads=threads, trunk=trunk)
        network.warm_up()
        super().__init__(file.info, network, tile_px=tile_px, gate=gate)
