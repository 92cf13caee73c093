"""int8 for OpenVINO: made from, and only used after a check on, the user's own stacks.

The check is on pixels that did not take part in the calibration: the upper half of every stack calibrates,
the lower half judges. What passes is kept beside the model with its hashes; anything changed since, and it
is not used.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acq_isl.engines.int8.accuracy import ABOVE, halves, judge
from acq_isl.engines.model_file import DEMO, ModelFile
from acq_isl.engines.openvino.int8 import FORM, calibration, quantised_trunk
from acq_isl.engines.tensorrt.plan_cache import default_folder, write_whole
from acq_isl.errors import EngineError, StackRefused
from acq_isl.stack import ZStack

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
