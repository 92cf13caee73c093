"""Vendors' formats (ND2, CZI, LIF, ...) through BioIO and its plug-ins, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers.recording import (
    DataSet,
    Lengths,
    Pixels,
    RecordedChannel,
    RecordedField,
    channel_names,
    well_of,
)

# What plug-ins of BioIO read and nobody here does.
_PLUGINS = {
    ".nd2": "bioio-nd2", ".czi": "bioio-czi", ".lif": "bioio-lif", ".dv": "bioio-dv", ".sldy": "bioio-sldy",
    ".oir": "bioio-bioformats", ".vsi": "bioio-bioformats", ".ims": "bioio-bioformats",
    ".lsm": "bioio-tifffile",
}  # fmt: skip

Open = Callable[[Path], Any]
"""Gives a `bioio.BioImage`, or what has the members of one that are used here."""


def open_image(path: Path) -> Any:
    """BioIO's image; `StorageError` names what must be installed."""
    plugin = _PLUGINS.get(path.suffix.lower(), "a plug-in of BioIO for this format")
    try:
        from bioio import BioImage
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{path} is read by BioIO, which is not installed",
            fix=f'pip install "acq-isl[bioio]" {plugin if plugin.startswith("bioio") else ""}'.strip(),
        ) from error
    try:
        return BioImage(path)
    except Exception as error:  # whatever a plug-in raises
        raise StorageError(
            f"{path} cannot be read by BioIO",
            got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            fix=f"pip install {plugin}; if it is installed, copy the file anew",
        ) from error


class BioioReader:
    """Reads a file of a vendor's format; each scene at each time is a field."""

    def __init__(self, opener: Open = open_image) -> None:
        self._open = opener

    def recognises(self, path: Path) -> bool:
        """Whether it is a file that a plug-in of BioIO is for, by its ending."""
        return path.suffix.lower() in _PLUGINS and path.is_file()

    def read(self, path: Path) -> DataSet:
        """All scenes and times; raises `StorageError`."""
        image = self._open(path)
        fields: list[RecordedField] = []
        try:
            scenes = [str(scene) for scene in image.scenes]
            names = [scene.rpartition(":")[2] for scene in scenes]  # LIF and OME say "Image:0"
            unnamed = len(set(names)) < len(names) or len(names) == 1
            for number, scene in enumerate(scenes):
                image.set_scene(number)
                name = (path.stem if len(scenes) == 1 else scene) if unnamed else names[number]
                channels = channel_names(int(image.dims.C), list(image.channel_names or ()), path.stem)
                fields += [
                    RecordedField(
                        path, name, channels, partial(self._channel, path, number, channels, time), (path,),
                        time, well_of(name),
                    )
                    for time in range(int(image.dims.T))
                ]  # fmt: skip
        except Exception as error:
            raise _broken(path, error) from error
        return DataSet(path, "a file read by BioIO", tuple(fields))

    def _channel(
        self, path: Path, scene: int, names: Sequence[str], time: int, number: int
    ) -> RecordedChannel:
        def read_planes(planes: Sequence[int]) -> Pixels:
            try:
                stack = self._scene(path, scene).get_image_dask_data("ZYX", T=time, C=number)
                return np.asarray(stack[list(planes)])
            except StorageError:
                raise
            except Exception as error:
                raise _broken(path, error) from error

        try:
            image = self._scene(path, scene)
            sizes, dims, dtype = image.physical_pixel_sizes, image.dims, np.dtype(image.dtype)
        except StorageError:
            raise
        except Exception as error:
            raise _broken(path, error) from error
        lengths = Lengths.stated(x=(sizes.X, "um"), y=(sizes.Y, "um"), z=(sizes.Z, "um"))
        shape = int(dims.Z), int(dims.Y), int(dims.X)
        return RecordedChannel(
            f"{path} scene {scene}", names[number], shape, dtype, lengths, None, read_planes
        )

    def _scene(self, path: Path, scene: int) -> Any:
        image = self._open(path)  # a scene is a state of the image: every use has its own
        image.set_scene(scene)
        return image


def _broken(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{path} cannot be read by BioIO",
        got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
        fix="copy it anew from where it was recorded, or export it as OME-TIFF",
    )
