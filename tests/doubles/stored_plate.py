"""A small plate as somebody recorded it, and the job of predicting it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import zarr

from acq_isl.bulk.work import Job, Settings
from doubles import tiny_model

ENGINE = "onnxruntime fp32"
WELLS = ("A/1", "A/2", "B/12")


def pixels(seed: int) -> np.ndarray:
    return tiny_model.stack(seed=seed).pixels


def write_image(folder: Path, stack: np.ndarray, *, pixel_um: float = 0.3, name: str = "Phase") -> None:
    """An OME-Zarr image with a channel of transmitted light and a stain, (t, c, z, y, x)."""
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    group.create_array("0", data=np.stack([stack, stack // 2 + 1])[None], chunks=(1, 1, 1, *stack.shape[1:]))
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = {"type": "scale", "scale": [1, 1, 1.5, pixel_um, pixel_um]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}],
        "omero": {"channels": [{"label": name}, {"label": "stain"}]},
    }


def write_plate(path: Path) -> Path:
    """Three wells of two fields."""
    for number, well in enumerate(WELLS):
        for field in range(2):
            write_image(path / well / str(field), pixels(2 * number + field))
        group = zarr.open_group(path / well, mode="a", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}, {"path": "1"}]}}
    plate = {"wells": [{"path": well, "rowIndex": 0, "columnIndex": 0} for well in WELLS]}
    zarr.open_group(path, mode="a", zarr_format=3).attrs["ome"] = {"version": "0.5", "plate": plate}
    return path


def job(model: Path, out: Path, **changes: object) -> Job:
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    settings = {"model": "tiny 1", "model_sha256": sha256, "engine": ENGINE} | changes
    return Job(str(model), Settings.model_validate(settings), out, 1)


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, by what is in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
