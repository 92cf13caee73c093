"""A z-stack that somebody saved as TIFF becomes a ZStack for a model."""

from __future__ import annotations

from pathlib import Path

from acq_isl.errors import StackRefused
from acq_isl.manifest import Manifest
from acq_isl.stack import StackInfo, StackKey, ZStack


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
