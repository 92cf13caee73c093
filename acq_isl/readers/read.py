"""Whatever somebody recorded, by its path: TIFF, NDTiff or OME-Zarr becomes a `RecordedField`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import StackRefused, StorageError
from acq_isl.manifest import Manifest
from acq_isl.readers.image import RecordedField, named_channels
from acq_isl.readers.ndtiff import INDEX, read_ndtiff
from acq_isl.readers.ome_zarr import is_zarr, read_zarr
from acq_isl.readers.tiff import read_tiff
from acq_isl.stack import StackInfo, StackKey, ZStack

_TIFF = (".tif", ".tiff")


def read_field(path: Path, *, position: str | None = None, time: int | None = None) -> RecordedField:
    """Read one field of a recording.

    Parameters
    ----------
    path : Path
        A TIFF file (all channels), a folder of TIFF files (one for each channel), an NDTiff data set or
        the run folder around it, or an OME-Zarr image or field of a plate.
    position : str, optional
        Of an NDTiff data set. Default: one with most channels.
    time : int, optional
        Number of the time point. Default: the first.

    Raises
    ------
    StorageError
        Nothing there can be replayed; says what was found and what to give.
    """
    if path.is_file() and path.suffix.lower() in _TIFF:
        return _tiff_file(path, time)
    if not path.is_dir():
        raise StorageError(
            f"there is no recording at {path}",
            wanted="a TIFF file, or a folder of TIFF files, an NDTiff data set or an OME-Zarr image",
            got="another kind of file" if path.exists() else "nothing",
            fix="check the path",
        )
    if (path / INDEX).is_file() or (path / "Full resolution" / INDEX).is_file():
        return read_ndtiff(path, position, time)
    if is_zarr(path):
        return read_zarr(path, time)
    files = sorted(one for one in path.iterdir() if one.suffix.lower() in _TIFF)
    return (
        _tiff_folder(path, files, time) if files else read_field(_inner(path), position=position, time=time)
    )


def _inner(folder: Path) -> Path:
    """The only data set in a folder, as in a run folder."""
    sets = [one for one in sorted(folder.iterdir()) if (one / INDEX).is_file()]
    if not sets:
        sets = [one for one in sorted(folder.iterdir()) if one.is_dir() and is_zarr(one)]
    if len(sets) == 1:
        return sets[0]
    raise StorageError(
        f"{folder} holds {'several recordings' if sets else 'no recording'}",
        wanted=f"TIFF files, NDTiff ({INDEX}) or OME-Zarr",
        got=", ".join(one.name for one in sets[:8])
        or ", ".join(sorted(p.name for p in folder.iterdir())[:8]),
        fix=f"give one of them, such as {sets[0]}" if sets else "give the folder that holds the images",
    )


def _tiff_folder(folder: Path, files: list[Path], time: int | None) -> RecordedField:
    channels: dict[str, Any] = {}
    pixel_um: float | None = None
    step_um: float | None = None
    for file in files:
        field = _tiff_file(file, time)
        if twice := channels.keys() & field.channels.keys():
            raise StorageError(
                f"two files in {folder} have the channel {min(twice)}", fix="give one of the files instead"
            )
        channels |= field.channels
        pixel_um = pixel_um or field.pixel_size_um
        step_um = step_um or field.z_step_um
    return RecordedField(str(folder), channels, pixel_um, step_um)


def _tiff_file(path: Path, time: int | None) -> RecordedField:
    image = read_tiff(path)
    # A stack without a word about its axes is a z-stack.
    axes = image.axes.replace("I", "Z").replace("Q", "Z")
    if len(set(axes)) < len(axes) or set(axes) - set("TCZYX"):
        raise StorageError(
            f"{path} is not a z-stack",
            wanted="axes among T, C, Z, Y, X",
            got=f"{image.axes} {image.pixels.shape}",
            fix="save grey images, one position per file",
        )
    pixels = image.pixels
    if "T" in axes:
        times = pixels.shape[axes.index("T")]
        if not 0 <= (time or 0) < times:
            raise StorageError(f"{path} has no time {time}", wanted=f"0 to {times - 1}")
        pixels, axes = np.take(pixels, time or 0, axes.index("T")), axes.replace("T", "")
    for place, axis in enumerate("CZ"):
        if axis not in axes:
            pixels, axes = np.expand_dims(pixels, place), axes[:place] + axis + axes[place:]
    ordered = np.transpose(pixels, [axes.index(axis) for axis in "CZYX"])
    name = path.name.split(".")[0]
    # In a folder, the file names the channel.
    names = image.channels if len(ordered) > 1 else ()
    channels = named_channels(str(path), ordered, names, name)
    return RecordedField(str(path), channels, image.pixel_size_um, image.z_step_um)


def read_stack(path: Path, manifest: Manifest, pixel_size_um: float | None = None) -> ZStack:
    """Read one field, whose planes are taken to lie where the model expects them.

    Parameters
    ----------
    path : pathlib.Path
        TIFF of (planes, rows, columns) uint16.
    manifest : Manifest
        Of the model that is to predict from it.
    pixel_size_um : float, optional
        The model's own if not given.

    Returns
    -------
    ZStack

    Raises
    ------
    StackRefused
        It cannot be read, or has another number of planes.
    """
    import tifffile

    try:
        pixels = tifffile.imread(path)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise StackRefused(
            f"{path} cannot be read: {error}", fix="give TIFF files of one z-stack each"
        ) from error
    if pixels.ndim != 3 or len(pixels) != manifest.planes:
        raise StackRefused(
            f"{path} is no stack for this model",
            wanted=f"({manifest.planes} planes, rows, columns)",
            got=str(pixels.shape),
            fix=f"record {manifest.planes} planes {manifest.z_step_um:.3g} um apart",
        )
    info = StackInfo(
        StackKey(0, path.stem, "file"),
        manifest.z_offsets_um,
        (pixels.shape[1], pixels.shape[2]),
        manifest.pixel_size_um if pixel_size_um is None else pixel_size_um,
    )
    return ZStack(info, pixels, (0.0,) * len(pixels))
