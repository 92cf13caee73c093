"""The Open Inference Protocol over gRPC, as Triton, KServe and OpenVINO Model Server speak it: one server.

The door to tritonclient, which is imported where it is used.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_ASK_S = 1.0
_GONE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")
_DATA = {"stack": "UINT8", "inv_sd": "FP32"}


class ServerGone(EngineError):
    """The server cannot be reached or did not answer in time."""


class ServerBusy(EngineError):
    """The server answered that it will not do this: its queue is full, or the request waited too long."""


def is_installed() -> bool:
    """Whether the client is there."""
    return importlib.util.find_spec("tritonclient") is not None


class Server:
    """One server and its model of a name; threads may share it."""

    def __init__(self, address: str, model: str) -> None:
        from tritonclient.grpc import InferenceServerClient

        self.address, self._model = address, model
        self._client: Any = InferenceServerClient(address)
        self._column: bool | None = None

    def is_ready(self) -> bool:
        """Whether it serves the model, asked within a second."""
        from tritonclient.utils import InferenceServerException

        try:
            return bool(self._client.is_model_ready(self._model, client_timeout=_ASK_S))
        except InferenceServerException:
            return False

    def infer(
        self, inputs: dict[str, NDArray[Any]], outputs: tuple[str, ...], *, priority: int, timeout_s: float
    ) -> tuple[Float32Image, ...]:
        """Outputs of the model in this order; ServerGone or ServerBusy. What waits longer than ``timeout_s``
        at the server is not begun any more; ``priority`` 1 comes before 2."""
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException

        try:
            if self._column is None:
                self._column = self._takes_a_column()
            sent = []
            for name, values in inputs.items():
                array = np.ascontiguousarray(values)
                array = array[:, None] if name == "inv_sd" and self._column else array
                sent.append(InferInput(name, list(array.shape), _DATA[name]).set_data_from_numpy(array))
            answer = self._client.infer(
                self._model,
                sent,
                outputs=[InferRequestedOutput(name) for name in outputs],
                priority=priority,
                timeout=int(timeout_s * 1e6),
                client_timeout=timeout_s,
            )
            found = [answer.as_numpy(name) for name in outputs]
        except InferenceServerException as error:
            raise self._failed(error) from error
        if any(values is None for values in found):
            raise ServerGone(f"{self.address} answered without {', '.join(outputs)}", fix="export it anew")
        return tuple(np.asarray(values, np.float32) for values in found)

    def _takes_a_column(self) -> bool:
        """Whether 1 / contrast has two axes there: Triton wants a batch of vectors."""
        about = self._client.get_model_metadata(self._model, client_timeout=_ASK_S)
        return any(each.name == "inv_sd" and len(each.shape) == 2 for each in about.inputs)

    def _failed(self, error: Any) -> EngineError:
        status = str(error.status() or "")
        kind = ServerGone if any(word in status for word in _GONE) else ServerBusy
        return kind(f"{self.address} did not predict: {error.message()}", got=status or None)

    def close(self) -> None:
        self._client.close()
