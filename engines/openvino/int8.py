"""What comes after normalisation as an int8 network for OpenVINO, by NNCF."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acq_isl.engines.int8.accuracy import ABOVE, halves, judge
from acq_isl.engines.model_file import DEMO, ModelFile
from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.files import default_folder, write_whole
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.processing.tiling import TileRule, cut, plan_tiles
from acq_isl.stack import Float32Image, Uint16Image, ZStack

# Stands for all that decides what int8 computes beside model and OpenVINO: what is quantised and how, and
# since 2 that the stack is handed over in bf16. Raise it with every change, so that int8 is judged again.
FORM = 2
_CALIBRATION_TILE_PX = 256
_CALIBRATION_TILES = 48
_HEAVY = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})


def calibration(stacks: Sequence[ZStack], manifest: Manifest) -> list[tuple[Uint16Image, Float32Image]]:
    """Tiles spread evenly over all stacks, each (1, z, h, w) with the contrast of its stack."""
    rule = TileRule(manifest.min_tile_px, manifest.halo_px, manifest.size_step_px)
    found = []
    for stack in stacks:
        inv_sd = np.full(
            1, inverse_contrast(stack.pixels, manifest.high_pass_um / manifest.pixel_size_um), np.float32
        )
        plan = plan_tiles(stack.info.shape, rule, tile_px=_CALIBRATION_TILE_PX)
        found += [(stack.pixels, plan, tile, inv_sd) for tile in plan.tiles]
    picks = np.unique(np.linspace(0, len(found) - 1, min(len(found), _CALIBRATION_TILES)).round().astype(int))
    chosen = (found[pick] for pick in picks)
    return [(cut(pixels, plan, (tile,)), inv_sd) for pixels, plan, tile, inv_sd in chosen]


def quantised_trunk(model: ModelFile, tiles: list[tuple[Uint16Image, Float32Image]]) -> tuple[bytes, bytes]:
    """XML and weights of the int8 form of what comes after normalisation.

    Its last convolutions and all that follows keep their precision: they give means and log variances side by
    side, and one range for both ruins the means.

    Parameters
    ----------
    model : ModelFile
    tiles : list
        What ranges are measured on, as `calibration` gives.

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


_log = logging.getLogger(__name__)

_NOTE = "accepted.json"


class Int8Note(BaseModel):
    """The result of the check, as it lies beside the quantised network."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: str = Field(default="acq-isl-int8/1", pattern=r"^acq-isl-int8/1$")
    model_sha256: str
    form: int = 0
    """`FORM` as it was judged; another one is judged again. Notes from before it was counted have 0."""
    openvino: str
    """Exact version that was judged; another one is judged again."""
    xml_sha256: str
    weights_sha256: str
    accepted: bool
    pearson: dict[str, float]
    """Correlation of the mean of each label with fp32, the lowest of all stacks."""
    f1: float | None
    """Nuclei found in int8 matched with those found in fp32, all stacks together; None without nuclei."""
    nuclei: int
    """Nuclei found in fp32."""
    above: float
    """Predicted intensity that makes a nucleus."""
    stacks: tuple[str, ...]
    """SHA-256 of the pixels of each stack that judged."""
    reason: str = ""
    """Why it was not accepted."""
    judged_at: str
    """ISO 8601 local time with offset."""


def int8_folder(model: ModelFile) -> Path:
    """Where the int8 form of a model is kept: beside it, or in the user's cache for the model that ships."""
    if model.info.where == DEMO:
        return default_folder() / "int8" / model.info.sha256[:16]
    path = Path(model.info.where)
    return path.with_name(f"{path.name}.int8")


def stored_int8(model: ModelFile) -> tuple[Int8Note, tuple[bytes, bytes]] | None:
    """The judgement on a model and its quantised network as XML and weights, if there and all hashes fit."""
    folder = int8_folder(model)
    try:
        note = Int8Note.model_validate_json((folder / _NOTE).read_bytes())
        xml, weights = (folder / "network.xml").read_bytes(), (folder / "network.bin").read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("int8 is not used, its note in %s cannot be read: %s", folder, error)
        return None
    found = (model.info.sha256, FORM, _openvino_version(), _sha256(xml), _sha256(weights))
    if found != (note.model_sha256, note.form, note.openvino, note.xml_sha256, note.weights_sha256):
        _log.warning(
            "int8 is not used: model, openvino, acq-isl's form of int8 or network changed since it was "
            "judged at %s; run acq-isl accept-int8 again",
            note.judged_at,
        )
        return None
    return note, (xml, weights)


def accept_int8(
    model: ModelFile, stacks: Sequence[ZStack], *, above: float = ABOVE, threads: int | None = None
) -> Int8Note:
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
    Int8Note
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
    if not stacks:
        raise StackRefused("int8 cannot be judged without stacks", fix="name one or more of your own")
    manifest = model.info.manifest
    upper, lower = zip(*(halves(stack) for stack in stacks), strict=True)
    xml, weights = quantised_trunk(model, calibration(upper, manifest))
    from acq_isl.engines.openvino.engine import (
        OpenVinoEngine,  # is there, or the line above would have said so
    )

    with (
        OpenVinoEngine(model, precision="fp32", threads=threads) as full,
        OpenVinoEngine(model, precision="int8", threads=threads, trunk=(xml, weights)) as low,
    ):
        found = judge((full, low), lower, above)
    note = Int8Note(
        model_sha256=model.info.sha256,
        form=FORM,
        openvino=_openvino_version(),
        xml_sha256=_sha256(xml),
        weights_sha256=_sha256(weights),
        accepted=not found.reason,
        pearson=found.pearson,
        f1=found.f1,
        nuclei=found.nuclei,
        above=above,
        stacks=tuple(_sha256(stack.pixels.tobytes()) for stack in lower),
        reason=found.reason,
        judged_at=datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    _keep(int8_folder(model), xml, weights, note)
    return note


def _keep(folder: Path, xml: bytes, weights: bytes, note: Int8Note) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without its note a network is not used, so the note goes last.
        (folder / _NOTE).unlink(missing_ok=True)
        write_whole(folder / "network.xml", xml)
        write_whole(folder / "network.bin", weights)
        write_whole(folder / _NOTE, note.model_dump_json(indent=1).encode())
    except OSError as error:
        raise EngineError(
            f"the int8 form cannot be kept in {folder}: {error}",
            wanted="a folder that can be written",
            fix="copy the model to a folder of yours and use it from there",
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _openvino_version() -> str:
    import openvino

    return str(openvino.get_version())
