"""A recorded field from OME-Zarr (NGFF) 0.4 and 0.5: an image, or the field of a plate."""

from __future__ import annotations

import logging
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers.image import RecordedField, named_channels

_log = logging.getLogger(__name__)

_UM = MappingProxyType(
    {
        "micrometer": 1.0,
        "nanometer": 1e-3,
        "millimeter": 1e3,
        "centimeter": 1e4,
        "meter": 1e6,
        "angstrom": 1e-4,
    }
)


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray"))


def read_zarr(folder: Path, time: int | None) -> RecordedField:
    """Read all channels of an image at one time, at full resolution.

    Parameters
    ----------
    folder : Path
        An image, or a well or collection that holds one.
    time : int, optional
        Default: 0.

    Raises
    ------
    StorageError
        It is no OME-Zarr image, a plate of several (which are named), damaged, or has no such time.
    """
    about = _about(folder)
    if not about.get("multiscales"):
        return read_zarr(_only_image(folder, about), time)
    scales = about["multiscales"][0]
    try:
        axes = [axis["name"] if isinstance(axis, dict) else str(axis) for axis in scales["axes"]]
        lengths_um = [_length_um(folder, scales, axes, axis) for axis in "xyz"]
        array = _array(folder, str(scales["datasets"][0]["path"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"the OME metadata of {folder} is incomplete", got=f"{type(error).__name__}: {error}"
        ) from error
    if not {"y", "x"} <= set(axes) or set(axes) - set("tczyx"):
        raise StorageError(
            f"{folder} is not an image of z-stacks", wanted="axes t, c, z, y, x", got=", ".join(axes)
        )
    pixels = _ordered(folder, array, axes, time)
    names = [one.get("label") for one in (about.get("omero") or {}).get("channels", ())]
    channels = named_channels(str(folder), pixels, names, folder.name)
    x_um, y_um, z_um = lengths_um
    if x_um is not None and y_um is not None and abs(x_um - y_um) > 1e-3 * x_um:
        raise StorageError(f"{folder} has pixels that are not square", got=f"{x_um:g} x {y_um:g} um")
    return RecordedField(str(folder), channels, x_um, z_um)


def _ordered(folder: Path, array: Any, axes: list[str], time: int | None) -> Any:
    """(c, z, y, x) pixels at one time; only what is wanted is read."""
    if len(axes) != array.ndim:
        raise StorageError(f"{folder} is damaged", wanted=f"{len(axes)} axes", got=f"{array.ndim}")
    wanted = time or 0
    times = array.shape[axes.index("t")] if "t" in axes else 1
    if not 0 <= wanted < times:
        raise StorageError(
            f"{folder} has no time {wanted}", wanted=f"0 to {times - 1}", fix="give another time"
        )
    try:
        pixels = np.asarray(array[tuple(wanted if axis == "t" else slice(None) for axis in axes)])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise StorageError(
            f"the pixels of {folder} cannot be read", got=f"{type(error).__name__}: {error}"
        ) from error
    present = [axis for axis in axes if axis != "t"]
    for place, axis in enumerate("cz"):
        if axis not in present:
            pixels = np.expand_dims(pixels, place)
            present.insert(place, axis)
    return np.transpose(pixels, [present.index(axis) for axis in "czyx"])


def _only_image(folder: Path, about: dict[str, Any]) -> Path:
    """The image inside a group of another kind, if it is the only one."""
    if "plate" in about:
        wells = [str(well["path"]) for well in about["plate"].get("wells", ())]
        inside = [
            f"{well}/{image['path']}"
            for well in wells[:4]
            for image in (_about(folder / well).get("well") or {}).get("images", ())
        ]
        kind, more = "plate", len(wells) > 4
    elif "well" in about:
        inside, kind, more = [str(image["path"]) for image in about["well"].get("images", ())], "well", False
    else:
        inner = sorted(path for path in folder.iterdir() if _is_group(path))
        inside = [path.name for path in inner if _about(path).keys() & {"multiscales", "plate", "well"}]
        kind, more = "collection", False
    if len(inside) == 1 and not more:
        return folder / inside[0]
    if not inside:
        raise StorageError(
            f"{folder} is no OME-Zarr image",
            wanted="a group with multiscales in its metadata",
            got="a Zarr group without an image",
            fix="give the folder of the image",
        )
    raise StorageError(
        f"{folder} is a {kind} of several images",
        got=", ".join(inside[:8]) + (", ..." if more or len(inside) > 8 else ""),
        fix=f"give one of them, such as {folder / inside[0]}",
    )


def _is_group(folder: Path) -> bool:
    import zarr

    return is_zarr(folder) and isinstance(zarr.open(str(folder), mode="r"), zarr.Group)


def _about(folder: Path) -> dict[str, Any]:
    """The OME metadata of a group: below ``ome`` since 0.5."""
    import zarr

    try:
        attributes = dict(zarr.open_group(str(folder), mode="r").attrs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{folder} cannot be read as OME-Zarr",
            got=f"{type(error).__name__}: {error}",
            fix="give the folder of the image, such as image.ome.zarr",
        ) from error
    inner = attributes.get("ome", attributes)
    return inner if isinstance(inner, dict) else {}


def _array(folder: Path, name: str) -> Any:
    import zarr

    try:
        return zarr.open_array(str(folder / name), mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the pixels of {folder} cannot be read", got=f"{type(error).__name__}: {error}"
        ) from error


def _length_um(folder: Path, scales: dict[str, Any], axes: list[str], axis: str) -> float | None:
    """Scale of an axis in micrometres; a scale of 1 without a unit is no length."""
    if axis not in axes:
        return None
    place, scale = axes.index(axis), 1.0
    transforms = [*scales["datasets"][0].get("coordinateTransformations", ())]
    for one in (*transforms, *(scales.get("coordinateTransformations") or ())):
        if one.get("type") == "scale":
            scale *= float(one["scale"][place])
    named = scales["axes"][place]
    unit = named.get("unit") if isinstance(named, dict) else None
    if unit is None:
        return None if scale == 1.0 else scale
    if unit not in _UM:
        raise StorageError(
            f"the {axis} axis of {folder} has an unknown unit", wanted=", ".join(_UM), got=unit
        )
    return scale * _UM[unit]
