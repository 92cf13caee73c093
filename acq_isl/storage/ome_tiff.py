"""One prediction as an OME-TIFF file, for programs that read no OME-Zarr: channels by label and doubt."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.stack import Prediction
from acq_isl.storage.ome_zarr import describe_prediction

_JSON_TAG = 65000


def write_field_tiff(path: Path, prediction: Prediction) -> None:
    """Write (channel, y, x) float32, always the same bytes; provenance is JSON in the private tag 65000."""
    import tifffile

    planes = np.empty((2 * len(prediction.labels), *prediction.info.shape), np.float32)
    planes[0::2], planes[1::2] = prediction.mean, prediction.spread
    about = json.dumps(describe_prediction(prediction))
    names = [f"{label} (predicted{what})" for label in prediction.labels for what in ("", ", doubt")]
    pixel_um = prediction.info.pixel_size_um
    metadata: dict[str, Any] = {
        "axes": "CYX", "Name": f"{prediction.info.key} (predicted)", "Channel": {"Name": names},
        "PhysicalSizeX": pixel_um, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_um, "PhysicalSizeYUnit": "µm",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, about)),
    }  # fmt: skip
    tifffile.imwrite(
        path, planes, ome=True, photometric="minisblack", metadata=metadata,
        extratags=[(_JSON_TAG, "s", 0, about, True)],
    )  # fmt: skip
