"""What comes after normalisation as an int8 network for OpenVINO, by NNCF."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.engines.int8.accuracy import ABOVE, measure_accuracy
from acq_isl.engines.int8.calibration import Tiles, calibration_tiles, split_in_two
from acq_isl.engines.int8.store import OPENVINO_FILES, Int8Judgement, Int8Store
from acq_isl.engines.model_file import ModelFile
from acq_isl.errors import EngineError, ModelError
from acq_isl.stack import ZStack

# Stands for all that decides what int8 computes beside model and OpenVINO: what is quantised and how, and
# since 2 that the stack is handed over in bf16. Raise it with every change, so that int8 is judged again.
FORM = 2
_HEAVY = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})


def quantised_trunk(model: ModelFile, tiles: Tiles) -> tuple[bytes, bytes]:
    """XML and weights of the int8 form of what comes after normalisation.

    Its last convolutions and all that follows keep their precision: they give means and log variances side by
    side, and one range for both ruins the means.

    Parameters
    ----------
    model : ModelFile
    tiles : list
        What ranges are measured on, as `calibration_tiles` gives.

    Raises
    ------
    EngineError
        OpenVINO or NNCF is not installed.
    ModelError
        The model has no int8 form.
    """
    nncf, openvino = _libraries()
    from acq_isl.engines.openvino.form import divided
    from acq_isl.engines.openvino.graph import read_graph

    core = openvino.Core()
    parts = divided(read_graph(core, model.content, split=True)).parts
    if parts.front is None or not parts.takes_counts:
        raise ModelError(
            f"model {model.info.where} has no int8 form",
            wanted="one value that separates normalisation, which must stay fp32, from the network",
            fix="use it in fp32, or export it again with this version of acq-isl",
        )
    settings = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    front = core.compile_model(parts.front, "CPU", settings)
    normalised = [np.array(front({"stack": stack, "inv_sd": inv_sd})[0]) for stack, inv_sd in tiles]
    ignored = nncf.IgnoredScope(names=decoding(parts.trunk), validate=False)
    network = nncf.quantize(
        parts.trunk,
        nncf.Dataset(normalised),
        subset_size=len(normalised),
        # Unsigned where a ReLU leaves nothing negative; as fast, and half the error.
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=ignored,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def decoding(trunk: Any) -> list[str]:
    """Names of the last convolutions and all that follows: what int8 would damage most and speed up least."""
    before_heavy: set[str] = set()
    last: list[str] = []
    for node in reversed(trunk.get_ordered_ops()):
        name = node.get_friendly_name()
        if node.get_type_name() in _HEAVY or name in before_heavy:
            if name not in before_heavy:
                last.append(name)  # a convolution that no other one follows
            before_heavy.update(source.get_friendly_name() for source in _sources(node))
        elif node.get_type_name() not in ("Constant", "Result", "Parameter"):
            last.append(name)
    return last


def _sources(node: Any) -> Iterator[Any]:
    for port in node.inputs():
        yield port.get_source_output().get_node()


def _libraries() -> tuple[Any, Any]:
    try:
        with _untold():
            import nncf
            import openvino
    except ImportError as error:
        raise EngineError(
            f"int8 needs OpenVINO and NNCF: {error}", fix='pip install "acq-isl[openvino]" nncf'
        ) from error
    nncf.set_log_level(logging.ERROR)
    return nncf, openvino


@contextmanager
def _untold() -> Iterator[None]:
    """NNCF reports its use to Google Analytics unless this is set while it is imported."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before


def stored_int8(model: ModelFile) -> tuple[Int8Judgement, tuple[bytes, bytes]] | None:
    """The judgement on a model and its quantised network as XML and weights, if there and all hashes fit."""
    found = _store().load(model)
    if found is None:
        return None
    judgement, (xml, weights) = found
    return judgement, (xml, weights)


def accept_int8(
    model: ModelFile, stacks: Sequence[ZStack], *, above: float = ABOVE, threads: int | None = None
) -> Int8Judgement:
    """Quantise a model, judge it, and keep the result where the engines find it.

    Accepted if, on the lower halves of the stacks, every label's mean correlates with fp32 by at least
    `LEAST_PEARSON`, and nuclei found in int8, matched with those found in fp32 (IoU 0.5), have an F1 of at
    least 1 - `MOST_F1_LOST`. An F1 against any truth can then hardly have changed by more than that.

    Parameters
    ----------
    model : ModelFile
    stacks : sequence of ZStack
        Of the user's own specimens, with cells in both halves.
    above : float
        Predicted intensity that makes a nucleus, as in the experiment's measurements.
    threads : int, optional

    Returns
    -------
    Int8Judgement
        ``accepted`` and ``reason`` say whether it will be used.

    Raises
    ------
    EngineError
        OpenVINO or NNCF is not installed, or the folder cannot be written.
    ModelError
        The model has no int8 form.
    StackRefused
        No stack was given, or one does not fit the model.
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
