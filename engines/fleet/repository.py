"""A model repository for Triton: the model file as it is, and how requests for it queue."""

from __future__ import annotations

import re
from pathlib import Path

from acq_isl.engines.model_file import ModelFile, ModelInfo, read_model
from acq_isl.errors import ModelError
from acq_isl.files import write_whole

_HASH_DIGITS = 12
_BATCH = 8
_LIVE_QUEUE, _LIVE_WAIT_US = 32, 2_000_000

_CONFIG = """\
# {title}, sha256 {sha256}: written by acq-isl export --triton.
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {batch}
input [
  {{ name: "stack" data_type: TYPE_UINT8 dims: [ {planes}, -1, -1, 2 ] }},
  {{ name: "inv_sd" data_type: TYPE_FP32 dims: [ 1 ] reshape: {{ shape: [ ] }} }}
]
output [
{outputs}
]
instance_group [ {{ kind: KIND_GPU count: 1 }} ]

# Plans are kept beside the model, which only its owner writes, so that a server that starts again does not
# build them again. Correct the path where the repository lies elsewhere for the server.
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator : [ {{
      name : "tensorrt"
      parameters {{ key: "precision_mode" value: "{precision}" }}
      parameters {{ key: "max_workspace_size_bytes" value: "4294967296" }}
      parameters {{ key: "trt_engine_cache_enable" value: "true" }}
      parameters {{ key: "trt_engine_cache_path" value: "{plans}" }}
    }} ]
  }}
}}

# Priority 1 is live: what waited {wait_s:g} s is of no use to anybody and is let go, and so is the newest when
# {live} wait, since its microscope then predicts it by itself. Priority 2 is bulk, and is never let go.
dynamic_batching {{
  max_queue_delay_microseconds: 0
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {{ timeout_action: DELAY default_timeout_microseconds: 0 allow_timeout_override: false max_queue_size: 0 }}
  priority_queue_policy [
    {{ key: 1 value: {{ timeout_action: REJECT default_timeout_microseconds: {wait_us} allow_timeout_override: true max_queue_size: {live} }} }},
    {{ key: 2 value: {{ timeout_action: DELAY default_timeout_microseconds: 0 allow_timeout_override: false max_queue_size: 0 }} }}
  ]
}}
"""  # noqa: E501


def served_name(model: ModelInfo) -> str:
    """By which a server knows a model: with its hash, so that no other answers to it."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', model.manifest.name)}_{model.sha256[:_HASH_DIGITS]}"


def write_repository(model: Path | str, folder: Path, *, fp16: bool = True) -> Path:
    """Write FOLDER/NAME/config.pbtxt and FOLDER/NAME/1/model.onnx; returns FOLDER/NAME.

    ModelError if the model cannot be read, or the folder cannot be written.
    """
    file = read_model(model)
    place = folder / served_name(file.info)
    try:
        (place / "1").mkdir(parents=True, exist_ok=True)
        write_whole(place / "1" / "model.onnx", file.content)
        (place / "plans").mkdir(mode=0o700, exist_ok=True)
        write_whole(place / "config.pbtxt", write_config(file, place / "plans", fp16=fp16))
    except OSError as error:
        raise ModelError(f"{place} cannot be written", got=str(error), fix="choose another folder") from error
    return place


def write_config(file: ModelFile, plans: Path, *, fp16: bool = True) -> str:
    """What Triton must know of a model, as text of its ``ModelConfig``; TensorRT's plans go to ``plans``."""
    manifest = file.info.manifest
    image = f"{len(manifest.labels)}, -1, -1"
    shapes = {name: image for name in file.info.output_names}
    if manifest.gate is not None:
        shapes["distance"] = f"{len(manifest.gate.names)}, -1, -1"
    outputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] }}' for name, dims in shapes.items()
    )
    return _CONFIG.format(
        title=f"{manifest.name} {manifest.version}", sha256=file.info.sha256, name=served_name(file.info),
        batch=_BATCH, planes=manifest.planes, outputs=outputs, precision="FP16" if fp16 else "FP32",
        plans=plans.resolve().as_posix(), wait_s=_LIVE_WAIT_US / 1e6, wait_us=_LIVE_WAIT_US, live=_LIVE_QUEUE,
    )  # fmt: skip
