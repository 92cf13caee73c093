"""One prediction as an OME-Zarr 0.5 image: axes, channels and provenance, written and read back equal.

Written with yaozarrs, the part of ome-writers that knows the format, and zarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from acq_isl.stack import Counting, Distance, Prediction, StackInfo, StageTimes

_LARGEST_CHUNK_PX = 1024


def read_field(folder: Path, provenance: Mapping[str, Any]) -> Prediction:
    """The prediction in a folder, whose provenance is in the image's attributes.

    KeyError, ValueError or OSError if `write_field` did not write it.
    """
    import zarr

    planes = np.asarray(zarr.open_array(folder / "0", mode="r")[:])
    return Prediction(
        info=TypeAdapter(StackInfo).validate_python(provenance["stack"]),
        labels=tuple(provenance["labels"]),
        mean=planes[0::2],
        spread=planes[1::2],
        model_sha256=provenance["model"]["sha256"],
        model_name=provenance["model"]["name"],
        engine=provenance["engine"],
        warnings=tuple(provenance["warnings"]),
        border_px=provenance["border_px"],
        times=TypeAdapter(StageTimes).validate_python(provenance["latency_ms"]),
        model=provenance.get("asked_as", ""),
        distances=TypeAdapter(tuple[Distance, ...]).validate_python(provenance.get("distances", ())),
        counting=TypeAdapter(tuple[Counting, ...]).validate_python(provenance.get("counting", ())),
        focus_offset_um=provenance.get("focus_offset_um"),
    )


def write_field(folder: Path, prediction: Prediction, colors: Mapping[str, str]) -> None:
    """Write a prediction into a new folder; ``colors`` are by label, or ``model/label``, as ``#rrggbb``."""
    from yaozarrs.write.v05 import write_image

    planes = np.empty((2 * len(prediction.labels), *prediction.info.shape), np.float32)
    planes[0::2], planes[1::2] = prediction.mean, prediction.spread
    write_image(
        folder,
        _image(prediction, colors),
        datasets=planes,
        extra_attributes={"acq_isl": describe_prediction(prediction)},
        writer="zarr",
        chunks=(1, *(min(side, _LARGEST_CHUNK_PX) for side in planes.shape[1:])),
        compression="blosc-lz4",
        progress=False,
    )


def _image(prediction: Prediction, colors: Mapping[str, str]) -> Any:
    from yaozarrs import DimSpec, v05

    info = prediction.info
    pixel = info.pixel_size_um
    space: dict[str, Any] = {"type": "space", "unit": "micrometer", "scale": pixel}
    axes = [DimSpec(name="c", size=2 * len(prediction.labels), type="channel")]
    for axis, side, middle in zip("yx", info.shape, (info.y_um, info.x_um), strict=True):
        first = middle - (side - 1) / 2 * pixel  # where the first pixel's middle lies
        axes.append(DimSpec(name=axis, size=side, translation=first, **space))

    def hue(label: str) -> str:  # of one of several models, where they have the same label
        return colors.get(f"{prediction.model}/{label}", colors.get(label, "#ffffff"))

    named = f"{info.key} {prediction.model}".rstrip()
    channels = [
        v05.OmeroChannel(
            window=v05.OmeroWindow(start=0.0, min=0.0, end=bright, max=2 * bright),
            label=f"{label} (predicted{what})",
            color=color,
            active=not what,
        )
        for label in prediction.labels
        for what, bright, color in (("", 1.0, hue(label)), (", doubt", 0.5, "#ffffff"))
    ]
    return v05.Image(
        multiscales=[v05.Multiscale.from_dims(axes, name=f"{named} (predicted)")],
        omero=v05.Omero(channels=channels),
    )


def describe_prediction(prediction: Prediction) -> dict[str, Any]:
    """Provenance: what it was predicted from, by what, and how far it can be trusted."""
    return {
        "predicted": True,
        "note": "Predicted from transmitted light, not measured. 0 is background, 1 the bright end of the "
        "training truth; doubt is one standard deviation in the same unit.",
        "labels": list(prediction.labels),
        "model": {"name": prediction.model_name, "sha256": prediction.model_sha256},
        "asked_as": prediction.model,
        "engine": prediction.engine,
        "latency_ms": asdict(prediction.times),
        "warnings": list(prediction.warnings),
        "border_px": prediction.border_px,
        "distances": [asdict(distance) for distance in prediction.distances],
        "counting": [asdict(counting) for counting in prediction.counting],
        "focus_offset_um": prediction.focus_offset_um,
        "stack": asdict(prediction.info),
        "software": {"acq-isl": version("acq-isl")},
    }
