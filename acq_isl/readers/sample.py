"""A public recorded field for everybody: fetched once, held against what it must be, written as OME-TIFF."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import cast
from urllib.parse import quote

import numpy as np
import tifffile

from acq_isl.errors import StorageError
from acq_isl.files import whole_file
from acq_isl.stack import Uint16Image

# The commit names the files' content; nobody can change them behind this address.
SOURCE = (
    "https://raw.githubusercontent.com/google/in-silico-labeling/"
    "a7abea5a6db5d7f0eba0067a4b16e473a42c4f19/isl/testdata/condition_blue_sample"
)
LICENCE = "Christiansen et al., Cell 2018; CC BY 4.0"
PIXEL_SIZE_UM = 0.3
_FIELD = (
    "lab-FINKBEINER,condition-KEVAN_0_8,acquisition_date,year-2015,month-10,day-5,minute-0,well-A4,"
    "tile_computation-STITCHED,{depth},channel-{channel},is_mask-false.png"
)
_COLUMNS = 704
_TIMEOUT_S = 30.0
_MOST_PIXELS = 4096 * 4096

# SHA-256 of columns 0 to 703 of each image, row by row, little-endian uint16.
_PHASE = (
    "f0426fe06a80af28722109d11d6dd7510e92bb9b70aa44e02e1454bb1fe3cd90",
    "9206c6a7a6baeace6b999bd2ff6e73297daafc4bb73beedb37244220dbd3b15c",
    "c7bd3cfc6c74b45530c088aec2dbb7fe6298b9ec1821ce387c822390e9b86463",
    "4c108ad4b9495b51e2436ee34625aef0e8aa5321ac2a18d9ff9cb30f9d3157d3",
    "3108c0fa36a3ea0be3fb3eb860313a0571ad71ef071ccdb69efcf5e315d6b80b",
    "2b60ed55d3abb51fe00fc3a83f649c5e14057843a0e4808e568e251b08986a46",
    "0ee14498c2b24405990480740afacd366cbe649efd26f4cdc541d943eedd44dc",
    "7dfa20d5190e8567c63cbd4193f3b2c6e3554a36f8c416b6692ef43640ec381b",
    "29e4810242b84d121f8daa42cf33ca7aca43ad6a4d1ceff25636c87432c5a030",
    "c028d84298b1c95ccd5a8d7821ec97b3a8093e0e371e6e003269949776756274",
    "30f829ca0b0bf78c988667ef80fe40a2527b76e4a344d4aa1e7faab263a80e75",
    "6459d8bbfe63057f26a35626ee9dd10a2a6dd966ff901c4d13f299ae929d5ada",
    "a68f993ed9e3247c9f323a44ac55f3dd6e182b509f5cb8e4438a4589ce3cbacd",
)
_STAINS = {
    "DAPI": "5666de248f2bcedf97cc345abf7d251d9ace0c534e9fb1319564d8cb0e036961",
    "MAP2": "096168e29ef43ddc20e1c62fd07ad32e22f0b58537e3690ad3160cc243cd55b4",
    "NFH": "651af67cc08a40548411107def1fa67b51f4c48b52db211780552b6d15bd7e06",
}


def fetch_condition_b(folder: Path, source: str = SOURCE) -> tuple[Path, ...]:
    """Fetch a phase-contrast stack and three stains of cultured neurons, and write them as OME-TIFF.

    Parameters
    ----------
    folder : path
        Gets ``phase_contrast.ome.tif`` ((13, y, x) uint16) and ``dapi``, ``map2``, ``nfh`` ((y, x) uint16).
    source : str
        Where the published PNG files are; a mirror of your own, if need be.

    Returns
    -------
    tuple of path
        The files written.

    Raises
    ------
    StorageError
        The files cannot be had, or are not those that were published; nothing is written then.
    """
    stack = [
        _fetch(source, _FIELD.format(depth=f"z_depth-{z}", channel="PHASE_CONTRAST"), wanted)
        for z, wanted in enumerate(_PHASE)
    ]
    stains = {
        stain: _fetch(
            source, _FIELD.format(depth="depth_computation-MAXPROJECT", channel=f"{stain}_CONFOCAL"), wanted
        )
        for stain, wanted in _STAINS.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    phase = folder / "phase_contrast.ome.tif"
    return (
        _write(phase, np.stack(stack), "ZYX"),
        *(_write(folder / f"{stain.lower()}.ome.tif", image, "YX") for stain, image in stains.items()),
    )


def _fetch(source: str, name: str, wanted: str) -> Uint16Image:
    """One image, (y, x), from the cache if it was fetched before."""
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        path = pooch.retrieve(
            f"{source}/{quote(name)}",
            known_hash=None,  # the pixels are held against theirs: the files may be packed anew by a mirror
            fname=f"{wanted}.png",
            path=pooch.os_cache("acq-isl"),
            downloader=pooch.HTTPDownloader(timeout=_TIMEOUT_S),
        )
    except (requests.RequestException, OSError) as error:
        if isinstance(error, requests.HTTPError) and error.response is not None:
            error.response.close()
        raise StorageError(
            f"the sample {name} cannot be fetched",
            got=str(error),
            fix="check the connection, or give a mirror with --source",
        ) from error
    image = _read(Path(path))
    left = b"" if image is None else np.ascontiguousarray(image[:, :_COLUMNS], dtype="<u2").tobytes()
    if image is None or hashlib.sha256(left).hexdigest() != wanted:
        Path(path).unlink()
        raise StorageError(
            f"the sample {name} is not what was published",
            wanted=f"SHA-256 {wanted[:12]}... of its first {_COLUMNS} columns",
            fix="fetch it from the address that is built in",
        )
    return image


def _read(path: Path) -> Uint16Image | None:
    """Pixels of a grey 16-bit PNG; None if it is anything else."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as file:
            if file.size[0] * file.size[1] > _MOST_PIXELS or not file.mode.startswith("I"):
                return None
            return cast(Uint16Image, np.asarray(file).astype(np.uint16))
    except (OSError, SyntaxError):  # what Pillow raises for a damaged PNG
        return None


def _write(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], axes: str) -> Path:
    about = {
        "axes": axes,
        "PhysicalSizeX": PIXEL_SIZE_UM,
        "PhysicalSizeY": PIXEL_SIZE_UM,
        "Description": LICENCE,
    }
    with whole_file(path) as partial:
        tifffile.imwrite(partial, image, ome=True, metadata=about)
    return path
