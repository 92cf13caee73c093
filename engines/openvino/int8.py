"""What comes after normalisation as an int8 network for OpenVINO, by NNCF."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.engines.graph_tags import IMAGES, read_tags
from acq_isl.engines.int8.accuracy import ABOVE, measure_accuracy
from acq_isl.engines.int8.calibration import Tiles, calibration_tiles, split_in_two
from acq_isl.engines.int8.store import OPENVINO_FILES, Int8Judgement, Int8Store
from acq_isl.engines.model_file import ModelFile
from acq_isl.errors import EngineError
from acq_isl.stack import ZStack

# Stands for all that decides what int8 computes beside model and OpenVINO: what is quantised and how, since 2
# that the stack is handed over in bf16, since 3 that the parts are those of the tags. Raise it with every
# change, so that int8 is judged again.
FORM = 3


def quantised_trunk(model: ModelFile, tiles: Tiles) -> tuple[bytes, bytes]:
    """XML and weights of the int8 form of what comes after normalisation.

    Last convolutions and all that follows are left alone: one range for means and log variances ruins the
    means.
    """
    nncf, openvino = _import_libraries()
    from acq_isl.engines.openvino.parts import DEVICE, split_model

    core, tags = openvino.Core(), read_tags(model.content)
    parts = split_model(core, model, tags)
    settings = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    front = core.compile_model(parts.front, DEVICE, settings)
    normalised = [np.array(front({"stack": stack, "inv_sd": inv_sd})[0]) for stack, inv_sd in tiles]
    images = [parts.trunk.output(name).get_node().input_value(0).get_node() for name in IMAGES]
    kept = nncf.Subgraph(
        inputs=find_heads(parts.trunk, tags.heads if tags else ()),
        outputs=[node.get_friendly_name() for node in images],
    )
    network = nncf.quantize(
        parts.trunk,
        nncf.Dataset(normalised),
        subset_size=len(normalised),
        # Unsigned where a ReLU leaves nothing negative; as fast, and half the error.
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(subgraphs=[kept]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def find_heads(trunk: Any, heads: Sequence[str]) -> list[str]:
    """OpenVINO's names of the nodes that make some values; a convolution, not the sum with its bias."""
    names = []
    for node in trunk.get_ops():
        if any(port.get_names() & set(heads) for port in node.outputs() if node.get_type_name() != "Result"):
            source = node.input_value(0).get_node() if node.get_type_name() == "Add" else node
            names.append(source.get_friendly_name())
    return names


def _import_libraries() -> tuple[Any, Any]:
    try:
        os.environ.setdefault("NNCF_CI", "1")  # else it reports its use to Google Analytics
        import nncf
        import openvino
    except ImportError as error:
        raise EngineError(
            f"int8 needs OpenVINO and NNCF: {error}", fix='pip install "acq-isl[openvino]" nncf'
        ) from error
    nncf.set_log_level(logging.ERROR)
    return nncf, openvino


def stored_int8(model: ModelFile) -> tuple[Int8Judgement, tuple[bytes, ...]] | None:
    """The judgement on a model and its quantised network as XML and weights, if there and all hashes fit."""
    return _store().load(model)


def accept_int8(
    model: ModelFile, stacks: Sequence[ZStack], *, above: float = ABOVE, threads: int | None = None
) -> Int8Judgement:
    """Quantise a model on the upper halves of the user's stacks, judge it on the lower ones
    (`measure_accuracy`), and keep both where the engines find them. ``above`` is the intensity that makes a
    nucleus.

    EngineError without OpenVINO, NNCF or a folder to write to, ModelError if the model has no int8 form,
    StackRefused without a stack that fits.
    """
    upper, lower = split_in_two(stacks)
    trunk = quantised_trunk(model, calibration_tiles(upper, model.info.manifest))
    from acq_isl.engines.openvino.engine import OpenVinoEngine  # quantised_trunk has said if it is not there

    with (
        OpenVinoEngine(model, precision="fp32", threads=threads) as full,
        OpenVinoEngine(model, precision="int8", threads=threads, trunk=trunk) as low,
    ):
        found = measure_accuracy((full, low), lower, above)
    return _store().save(model, trunk, found, lower)


def _store() -> Int8Store:
    import openvino

    made_by = f"openvino {openvino.get_version()}, form {FORM}"
    return Int8Store("accepted.json", OPENVINO_FILES, made_by, "acq-isl accept-int8")
