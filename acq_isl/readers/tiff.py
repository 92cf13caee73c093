"""(OME-)TIFF files in: pixels, pixel size and z step, with errors a microscopist understands."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

from acq_isl.errors import StorageError

_UM_PER_UNIT = MappingProxyType(
    {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "Å": 1e-4, "pm": 1e-6}
)


@dataclass(frozen=True, slots=True, eq=False)
class TiffImage:
    """Contents of a file: pixels, their axes, and what its OME or ImageJ metadata know.

    Parameters
    ----------
    pixels : array
    pixel_size_um, z_step_um : float or None
    axes : str
        One letter per axis, as tifffile gives them: ``ZCYX``.
    channels : tuple of str
        Names of the channels, where the file names them.
    """

    pixels: Any
    pixel_size_um: float | None
    z_step_um: float | None
    axes: str = ""
    channels: tuple[str, ...] = ()


def read_tiff(path: Path) -> TiffImage:
    """Read the only image of a file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    TiffImage

    Raises
    ------
    StorageError
        Missing, empty, damaged, not a TIFF, several images, or pixels that are not square.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if len(file.series) != 1:
                raise StorageError(f"{path} holds several images", wanted="one", got=str(len(file.series)))
            needed = sum(sum(page.databytecounts) for page in file.pages)
            if needed > file.filehandle.size:
                raise StorageError(
                    f"{path} ends too early", wanted=f"{needed} bytes", got=f"{file.filehandle.size} bytes"
                )
            pixels, metadata, axes = file.series[0].asarray(), file.ome_metadata, file.series[0].axes
            imagej, resolution = file.imagej_metadata, file.pages.first.tags.get("XResolution")
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}", fix="check the folder and the name") from error
    except (OSError, ValueError, LookupError, struct.error, zlib.error, tifffile.TiffFileError) as error:
        raise StorageError(
            f"{path} cannot be read as a TIFF file",
            got=f"{type(error).__name__}: {error}",
            fix="copy it anew from where it was recorded, or save it uncompressed",
        ) from error
    x_um, y_um, z_um = _lengths_um(path, metadata)
    if metadata is None and imagej is not None:
        x_um, z_um = _imagej_lengths_um(imagej, None if resolution is None else resolution.value)
    if x_um is not None and y_um is not None and abs(x_um - y_um) > 1e-3 * x_um:
        raise StorageError(f"{path} has pixels that are not square", got=f"{x_um:g} x {y_um:g} um")
    return TiffImage(pixels, x_um, z_um, axes, _channels(metadata))


def _imagej_lengths_um(
    imagej: dict[str, Any], resolution: tuple[int, int] | None
) -> tuple[float | None, float | None]:
    """Pixel size and z step as ImageJ writes them: pixels per unit, and spacing."""
    unit = _UM_PER_UNIT.get(str(imagej.get("unit", "")).replace("\\u00B5", "µ").replace("micron", "um"))
    if unit is None:
        return None, None
    per_unit = resolution[0] / resolution[1] if resolution and resolution[1] else 0.0
    spacing = float(imagej.get("spacing", 0.0))
    return (unit / per_unit if per_unit > 0 else None), (unit * spacing if spacing > 0 else None)


def _channels(metadata: str | None) -> tuple[str, ...]:
    """Names of the channels in OME metadata that `_lengths_um` could parse."""
    if metadata is None:
        return ()
    found = [one for one in ElementTree.fromstring(metadata).iter() if one.tag.endswith("}Channel")]
    names = [one.attrib.get("Name", "") for one in found]
    return tuple(names) if all(names) else ()


def _lengths_um(path: Path, metadata: str | None) -> tuple[float | None, float | None, float | None]:
    """PhysicalSizeX, Y and Z of the OME metadata, in micrometres."""
    if metadata is None:
        return None, None, None
    try:
        root = ElementTree.fromstring(metadata)
    except ElementTree.ParseError as error:
        raise StorageError(f"the OME metadata of {path} is not XML", got=str(error)) from error
    pixels = next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None, None, None
    x_um, y_um, z_um = (_length_um(path, pixels.attrib, f"PhysicalSize{axis}") for axis in "XYZ")
    return x_um, y_um, z_um


def _length_um(path: Path, attributes: dict[str, str], name: str) -> float | None:
    if name not in attributes:
        return None
    unit = attributes.get(f"{name}Unit", "µm")
    try:
        length_um = float(attributes[name]) * _UM_PER_UNIT[unit]
    except (ValueError, KeyError) as error:
        raise StorageError(
            f"{name} in the OME metadata of {path} is not a length",
            wanted=f"a number in {', '.join(_UM_PER_UNIT)}",
            got=f"{attributes[name]} {unit}",
            fix="give pixel_size_um and z_step_um",
        ) from error
    return length_um if length_um > 0 else None
