"""A real server of the Open Inference Protocol on the processor, for tests and `benchmarks/fleet.py`::

    python -m venv kserve && kserve/bin/pip install kserve onnxruntime
    kserve/bin/python benchmarks/kserve_server.py REPOSITORY 8001

It needs nothing of acq-isl: KServe's own model server answers, ONNX Runtime computes each model of a
repository that ``acq-isl export MODEL --triton REPOSITORY`` wrote, on one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime

_MOST = str(1 << 30)  # bytes of a message; KServe looks for options on the command line when it is imported
sys.argv += ["--grpc_max_send_message_length", _MOST, "--grpc_max_receive_message_length", _MOST]
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # noqa: E402

_DATA = {"tensor(float)": "FP32", "tensor(uint8)": "UINT8"}


class OnnxModel(Model):
    """One model of the repository, by the name of its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "1" / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.ready = True

    async def get_input_types(self) -> list[dict]:
        return [self._about(port) for port in self._session.get_inputs()]

    async def get_output_types(self) -> list[dict]:
        return [self._about(port) for port in self._session.get_outputs()]

    @staticmethod
    def _about(port: object) -> dict:
        shape = [side if isinstance(side, int) else -1 for side in port.shape]
        return {"name": port.name, "datatype": _DATA[port.type], "shape": shape}

    def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None):
        wanted = [port.name for port in self._session.get_outputs()]
        given = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        outputs = []
        for name, values in zip(wanted, self._session.run(wanted, given), strict=True):
            output = InferOutput(name=name, shape=list(values.shape), datatype="FP32")
            output.set_data_from_numpy(values, binary_data=True)
            outputs.append(output)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=outputs)


def main() -> None:
    repository, port = Path(sys.argv[1]), int(sys.argv[2])
    models = [OnnxModel(folder) for folder in sorted(repository.iterdir()) if (folder / "1").is_dir()]
    ModelServer(http_port=port + 1000, grpc_port=port, enable_docs_url=False).start(models)


if __name__ == "__main__":
    main()
