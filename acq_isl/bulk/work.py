"""What is to be done with a field at one time, and what came of it: all that goes to a worker and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.stack import Modality


class Settings(StrictModel):
    """What a result depends on beside its input; an output folder is of one of these."""

    format: Literal["acq-isl-predict/1"] = "acq-isl-predict/1"
    model: str
    """Name and version, for people."""
    model_sha256: str
    engine: str
    """Back end and precision, as ``--backend`` takes them."""
    gate: Literal["refuse", "warn"] = "refuse"
    transmitted: str | None = None
    """Channel of transmitted light, where its name does not tell."""
    light: Modality | None = None
    """Kind of transmitted light; by default what the channel's name tells."""
    pixel_size_um: float | None = Field(default=None, gt=0)
    z_step_um: float | None = Field(default=None, gt=0)
    output: Literal["ome-zarr", "ome-tiff"] = "ome-zarr"
    measure: bool = False
    views: int = Field(default=1, ge=1, le=8)
    """Over how many views of each stack predictions are averaged."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all chunks of a call have in common."""

    model: str
    """Path of the model file, or ``"demo"``."""
    settings: Settings
    out: Path
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A field at one time: where it is read, and where its prediction goes."""

    group: str
    """Of the output: one plate."""
    data: Path
    number: int
    """Of the field among those of the data set."""
    field: str
    time: int
    well: str
    position: str
    channel: str
    image: str
    """Path of the prediction in its plate, such as ``A/1/A1003t0Phase``."""
    input: str
    """Digest of names, sizes and times of the files that hold the field."""


class MeasuredRow(StrictModel):
    """A number from one predicted label of a field; None is not known."""

    label: str
    measurement: str
    value: float | None
    sd: float | None
    unit: str


class ObjectRow(StrictModel):
    """A segmented object of a predicted label; places are from the middle of the field's first pixel."""

    label: str
    object: int
    x_um: float
    y_um: float
    area_um2: float
    mean: float


class Predicted(StrictModel):
    """It was predicted, and stored."""

    kind: Literal["predicted"] = "predicted"
    input: str
    pixels_sha256: str
    """Of the stack as it was read, (z, y, x) uint16."""
    engine: str
    pixel_size_um: float
    warnings: tuple[str, ...]
    measurements: tuple[MeasuredRow, ...] = ()
    objects: tuple[ObjectRow, ...] = ()


class Refused(StrictModel):
    """It does not fit the model, and will not when it is tried again."""

    kind: Literal["refused"] = "refused"
    input: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not be read, computed or written; the next call tries again."""

    reason: str
    fix: str = ""


Record = Annotated[Predicted | Refused, Field(discriminator="kind")]
Outcome = Predicted | Refused | Failed


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a chunk, and the seconds that it took."""

    outcome: Outcome
    read_s: float = 0.0
    predict_s: float = 0.0
    write_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A field, well or data set that was found and cannot be read."""

    group: str
    well: str
    field: str
    reason: str
    fix: str
