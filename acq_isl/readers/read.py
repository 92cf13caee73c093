"""Whatever somebody recorded, by its path: a reader of its format is found among those installed."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path

from acq_isl.compatibility import Refuse, check
from acq_isl.errors import StackRefused, StorageError
from acq_isl.manifest import Manifest
from acq_isl.readers.bioio import BioioReader
from acq_isl.readers.image_folder import ImageFolderReader
from acq_isl.readers.ndtiff import NdtiffReader
from acq_isl.readers.ome_zarr import OmeZarrReader
from acq_isl.readers.recording import DataSet, Reader, RecordedField, SurveysDamage, as_counts
from acq_isl.readers.tiff import TiffReader
from acq_isl.stack import StackInfo, StackKey, ZStack

logger = logging.getLogger(__name__)

GROUP = "acq_isl.readers"
# From the most particular to the most general: a folder of NDTiff holds TIFF files as well.
_BUILT_IN: tuple[type[Reader], ...] = (
    NdtiffReader, OmeZarrReader, ImageFolderReader, TiffReader, BioioReader
)  # fmt: skip


def readers() -> tuple[Reader, ...]:
    """All installed readers, other packages' first; one that cannot be loaded is logged and left out."""
    found: list[Reader] = []
    for entry in entry_points(group=GROUP):
        if entry.dist is not None and entry.dist.name == "acq-isl":
            continue  # built in: known without metadata, which a checkout may have of an older version
        try:
            reader = entry.load()()
            if not isinstance(reader, Reader):
                raise TypeError(f"{entry.value} has no recognises and read")
            found.append(reader)
        except Exception:
            logger.warning("the reader %r of %s cannot be used", entry.name, entry.value, exc_info=True)
    return (*found, *(kind() for kind in _BUILT_IN))


def read_data_set(path: Path) -> DataSet:
    """What a path holds, as `survey_data_set`; `StorageError` also if any part of it is damaged."""
    return survey_data_set(path).whole()


def survey_data_set(path: Path) -> DataSet:
    """Find out what a path holds: a file or folder that a reader recognises, or a folder around one.

    TIFF files (one for each channel or position), Micro-Manager's image files, an NDTiff data set, an
    OME-Zarr image or plate, the published PNG files, what an installed reader knows. `StorageError` says
    what was found and what to give. Parts that are damaged are in `DataSet.damaged`.
    """
    reader = find_reader(path)
    if reader is not None:
        return _survey(reader, path)
    if not path.is_dir():
        raise StorageError(
            f"there is no recording at {path}",
            wanted="a TIFF file, or a folder of TIFF files, an NDTiff data set or an OME-Zarr image",
            got="another kind of file" if path.exists() else "nothing",
            fix="check the path",
        )
    inside = sorted(path.iterdir())
    for reader in readers():
        sets = [inner for inner in inside if _recognises(reader, inner)]
        if len(sets) == 1:
            return _survey(reader, sets[0])
        if sets:
            break
    raise StorageError(
        f"{path} holds {'several recordings' if sets else 'no recording'}",
        wanted="TIFF files, NDTiff or OME-Zarr",
        got=", ".join(inner.name for inner in (sets or inside)[:8]),
        fix=f"give one of them, such as {sets[0]}" if sets else "give the folder that holds the images",
    )


def _survey(reader: Reader, path: Path) -> DataSet:
    return reader.survey(path) if isinstance(reader, SurveysDamage) else reader.read(path)


def find_reader(path: Path) -> Reader | None:
    """The first reader that recognises a path."""
    return next((reader for reader in readers() if _recognises(reader, path)), None)


def _recognises(reader: Reader, path: Path) -> bool:
    try:
        return reader.recognises(path)
    except Exception:  # of another package, or a folder that must not be read
        logger.warning("%s cannot look at %s", type(reader).__name__, path, exc_info=True)
        return False


def read_field(path: Path, *, position: str | None = None, time: int | None = None) -> RecordedField:
    """One field of what a path holds; see `read_data_set` and `DataSet.field`."""
    data = read_data_set(path)
    field = data.field(position, time)
    if len(data.fields) > 1:
        logger.info(
            "%s holds %d fields; %s at time %d is used", path, len(data.fields), field.name, field.time
        )
    twice = [name for name in field.channels if field.channels.count(name) > 1]
    if twice:
        raise StorageError(
            f"two channels of {field.source} have the same name", got=", ".join(field.channels)
        )
    return field


def read_stack(path: Path, manifest: Manifest, pixel_size_um: float | None = None) -> ZStack:
    """Read the stack of transmitted light of a path for a model. Pixel size and heights are those that are
    stated, else those of the metadata, else the model's own. `StackRefused` if it cannot be read or does not
    fit the model, see `acq_isl.compatibility.check`."""
    try:
        field = read_field(path)
        channel = field.channel(field.transmitted())
        pixels = as_counts(channel.read(), str(path))
        size_um = pixel_size_um or channel.lengths.pixel_size_um or manifest.pixel_size_um
        known = channel.has_heights or channel.lengths.z_step_um is not None
        z_um = channel.lengths_um(size_um)[1] if known else channel.z_um or manifest.z_offsets_um
    except StorageError as error:
        raise StackRefused(f"{path} cannot be read: {error}", fix="give files of one z-stack each") from error
    if not known and len(pixels) != manifest.planes:
        raise StackRefused(
            f"{path} is no stack for this model",
            wanted=f"({manifest.planes} planes, rows, columns)",
            got=str(pixels.shape),
            fix=f"record {manifest.planes} planes {manifest.z_step_um:.3g} um apart",
        )
    key, shape = StackKey(field.time, path.stem, "file"), (pixels.shape[1], pixels.shape[2])
    info = StackInfo(key, z_um, shape, size_um)
    verdict = check(manifest, info)
    if isinstance(verdict, Refuse):
        raise StackRefused(f"{path}: {verdict.reason}", fix=verdict.fix)
    return ZStack(info, pixels, (0.0,) * len(pixels))
