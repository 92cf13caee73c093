"""Where a prediction lies in an OME-Zarr 0.5 plate, and what plate and wells say of their images.

A position named ``A1_003`` is a field of well A1; a run without wells is one well, A1. Time points are the
plate's acquisitions. The root also lists the images themselves, as multiscales whose paths lead into the
wells: a reader that knows no plates finds every field there as a scene.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acq_isl.rules.series import well_of
from acq_isl.stack import StackKey

VERSION = "0.5"
_ONE_WELL = ("A", "1")


@dataclass(frozen=True, slots=True)
class Image:
    """One complete image of a plate: its path in the store, its time point, its OME attributes."""

    path: str
    time: int
    ome: Mapping[str, Any]

    @property
    def well(self) -> str:
        return self.path.rpartition("/")[0]


def image_path(key: StackKey, model: str = "") -> str:
    """Path of a stack's first prediction by a model as it was asked for, such as ``A/1/A1003t0Phase``.

    The format allows letters and digits only, so two stacks may share it; `PredictionStore` numbers them.
    """
    row, column = well_of(key.position) or _ONE_WELL
    name = re.sub(r"[^A-Za-z0-9]+", "", f"{key.position}t{key.time}{key.channel}{model}")
    return f"{row}/{column}/{name}"


def describe_plate(name: str, images: Sequence[Image]) -> dict[str, Any]:
    """The ``ome`` attributes of the root of a store with these images."""
    from yaozarrs import v05

    wells = Counter(image.well for image in images if image.well)
    rows = sorted({well.split("/")[0] for well in wells}, key=lambda row: (len(row), row))
    columns = sorted({well.split("/")[1] for well in wells}, key=int)
    plate = v05.PlateDef(
        name=name,
        rows=[v05.Row(name=row) for row in rows],
        columns=[v05.Column(name=column) for column in columns],
        wells=[
            v05.PlateWell(path=well, rowIndex=rows.index(row), columnIndex=columns.index(column))
            for well in wells
            for row, column in [well.split("/")]
        ],
        field_count=max(wells.values()),
        acquisitions=[
            v05.Acquisition(id=time, name=f"time {time}") for time in sorted({image.time for image in images})
        ],
    )
    ome = v05.Plate(plate=plate).model_dump(mode="json", exclude_none=True, by_alias=True)
    ome["multiscales"] = _scenes(images)
    channels = images[0].ome.get("omero")
    if channels is not None and all(image.ome.get("omero") == channels for image in images):
        ome["omero"] = channels
    return ome


def describe_well(images: Sequence[Image]) -> dict[str, Any]:
    """The ``ome`` attributes of a well with these images."""
    from yaozarrs import v05

    fields = [v05.FieldOfView(path=image.path.rpartition("/")[2], acquisition=image.time) for image in images]
    well = v05.Well(well=v05.WellDef(images=fields))
    return well.model_dump(mode="json", exclude_none=True, by_alias=True)


def _scenes(images: Sequence[Image]) -> list[dict[str, Any]]:
    """The images as seen from the root, with names of which no two are equal."""
    scenes, seen = [], Counter[str]()
    for image in images:
        [scales] = image.ome["multiscales"]
        name = scales["name"]
        seen[name] += 1
        levels = [{**level, "path": f"{image.path}/{level['path']}"} for level in scales["datasets"]]
        again = f" {seen[name]}" if seen[name] > 1 else ""
        scenes.append({**scales, "name": name + again, "datasets": levels})
    return scenes
