"""A model in ONNX Runtime on the processor: the reference, and what int8 networks are judged with."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from acq_isl.engines.backend import default_threads
from acq_isl.engines.model_file import ModelFile, output_names
from acq_isl.errors import EngineError, ModelError
from acq_isl.stack import Float32Image

_FATAL_ONLY = 4  # whatever goes wrong is raised; the runtime need not print it as well
# The runtime's errors have no common base but Exception.
_RUNTIME_ERRORS = (
    runtime.EPFail,
    runtime.EngineError,
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NoModel,
    runtime.NotImplemented,
    runtime.RuntimeException,
    MemoryError,
    RuntimeError,
    ValueError,
)


class OnnxNetwork:
    """One ONNX Runtime session on `default_threads` or so many cores; threads may share it.

    ModelError if the runtime cannot load the network.
    """

    name = "onnxruntime cpu fp32"

    def __init__(self, model: ModelFile, *, threads: int | None = None) -> None:
        self.threads = default_threads() if threads is None else max(threads, 1)
        self.outputs = output_names(model.info.manifest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        # Threads that spin between stacks would take the cores from the camera.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: dict[str, str] = {}
        if model.info.manifest.max_tile_px is not None:
            # A model that bounds its tiles is short of memory. Planning ahead allocates all of a run once
            # more beside what the first run left there, and the default arena grows in powers of two.
            options.enable_mem_pattern = False
            provider["arena_extend_strategy"] = "kSameAsRequested"
        try:
            self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
                model.content, options, providers=[("CPUExecutionProvider", provider)]
            )
        except _RUNTIME_ERRORS as error:
            raise ModelError(
                f"ONNX Runtime cannot load model {model.info.where}: {error}",
                wanted=f"operators up to those of onnxruntime {onnxruntime.__version__}",
                got=f"ONNX opset {model.info.opset}",
                fix="update onnxruntime, or export the model again with this version of acq-isl",
            ) from error

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer a batch of tiles; see `acq_isl.engines.predictor.Network`."""
        session = self._session
        if session is None:
            raise EngineError("the engine is closed", fix="load the engine again")
        try:
            found = session.run(list(self.outputs), {"stack": tiles, "inv_sd": inv_sd})
        except _RUNTIME_ERRORS as error:
            raise EngineError(
                f"ONNX Runtime failed on tiles of {tiles.shape}: {error}",
                fix="if memory ran out, use smaller tiles or close other programs",
            ) from error
        return tuple(found)

    def close(self) -> None:
        self._session = None
