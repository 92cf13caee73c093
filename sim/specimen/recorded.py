"""A recorded z-stack and its label images as a specimen without end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from acq_isl.compatibility import check_heights
from acq_isl.errors import StorageError
from acq_isl.readers.read import read_field
from acq_isl.readers.recording import RecordedChannel, as_counts, label_of
from acq_isl.readers.tiff import read_file
from acq_isl.sim.view import CameraSettings, View
from acq_isl.stack import Float32Image

Recording = NDArray[np.uint8 | np.uint16]


def mirror_runs(start: int, length: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut pixels from ``start`` on of an axis that is repeated as its mirror image into copies of slices.

    Pixels 0 to ``size`` - 1 are the axis itself, -1 repeats pixel 0. Yields target and source slices; those
    of mirrored stretches run backwards.
    """
    done = 0
    while done < length:
        place = (start + done) % (2 * size)
        if place < size:
            count = min(size - place, length - done)
            source = slice(place, place + count)
        else:
            first = 2 * size - 1 - place
            count = min(first + 1, length - done)
            source = slice(first, first - count if count <= first else None, -1)
        yield slice(done, done + count), source
        done += count


def mirror_planes(
    planes: list[tuple[Recording, float]], start: tuple[int, int], shape: tuple[int, int]
) -> Float32Image:
    """Weighted sum of planes over a region of the mirrored field, as light."""
    light = np.empty(shape, np.float32)
    size = planes[0][0].shape
    full_scale = float(np.iinfo(planes[0][0].dtype).max)
    for to_rows, rows in mirror_runs(start[0], shape[0], size[0]):
        for to_columns, columns in mirror_runs(start[1], shape[1], size[1]):
            target = light[to_rows, to_columns]
            first, weight = planes[0]
            np.multiply(first[rows, columns], np.float32(weight / full_scale), out=target)
            for plane, weight in planes[1:]:
                target += plane[rows, columns] * np.float32(weight / full_scale)
    return light


def resampling_matrix(start: float, ratio: float, count: int) -> tuple[int, Any]:
    """First recorded pixel needed, and the (count, needed) sparse matrix that makes view pixels of them.

    View pixel j covers ``start + j * ratio`` to one ratio further on the axis of recorded pixel edges:
    larger pixels average what they cover, smaller ones interpolate between pixel centres.
    """
    pixel = np.arange(count)
    entries = []
    if ratio >= 1:
        left = start + pixel * ratio
        for step in range(math.ceil(ratio) + 1):
            source = np.floor(left) + step
            covered = np.minimum(source + 1, left + ratio) - np.maximum(source, left)
            entries.append((source, np.maximum(covered, 0.0) / ratio))
    else:
        centre = start + (pixel + 0.5) * ratio - 0.5
        below = np.floor(centre)
        entries += [(below, 1 - (centre - below)), (below + 1, centre - below)]
    source = np.concatenate([places for places, _ in entries]).astype(int)
    weight = np.concatenate([weights for _, weights in entries]).astype(np.float32)
    first = int(source.min())
    target = np.tile(pixel, len(entries))
    shape = (count, int(source.max()) - first + 1)
    target, source, weight = target[weight > 0], source[weight > 0], weight[weight > 0]
    return first, sparse.csr_array((weight, (target, source - first)), shape=shape)


# Of the published recordings of condition B, whose files do not say.
PUBLISHED_Z_STEP_UM = 1.5
_PUBLISHED = "phase_contrast.ome.tif"
_SAME = 1e-3  # relative difference of pixel sizes, and part of a plane, that count as none


@dataclass(frozen=True, slots=True, eq=False)
class RecordedLabel:
    """One label as it was really measured: (y, x) uint8 or uint16, seen in a preset, the same at every z."""

    channel: str
    pixels: Recording


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSpecimen:
    """A z-stack of transmitted light with label images, repeated mirrored over the whole stage.

    The middle of the recording lies at stage 0, 0 and its middle plane at z 0, the first plane at negative
    z. Where the pixel size is the recorded one, or a whole multiple, places snap to the recorded pixels,
    so that pixel values and their noise come back unchanged (or exactly binned); else light is
    averaged over the larger pixel or interpolated linearly. Between planes light is interpolated
    linearly; beyond the ends the last plane stays. StorageError for images of a wrong or different size.
    """

    transmitted: Recording
    """(z, y, x) uint8 or uint16; planes at equal distance; full scale of the type is light 1.0."""
    labels: Mapping[str, RecordedLabel]  # `RecordedLabel` by label name
    pixel_size_um: float
    z_step_um: float = PUBLISHED_Z_STEP_UM
    channel: str = "Phase"  # preset of transmitted light
    heights_um: tuple[float, ...] = ()
    """Rising height of each plane where they are not equally far apart; empty: ``z_step_um`` apart."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        _check("the transmitted stack", self.transmitted, "(z, y, x)")
        for name, label in self.labels.items():
            _check(f"label {name!r}", label.pixels, "(y, x)")
            if label.pixels.shape != self.transmitted.shape[1:]:
                raise StorageError(
                    f"label {name!r} and the transmitted stack do not have the same size",
                    wanted=f"{self.transmitted.shape[1:]} pixels",
                    got=f"{label.pixels.shape} pixels",
                    fix="register and crop them to the same field",
                )
        used = [self.channel, *(label.channel for label in self.labels.values())]
        if len(set(used)) < len(used):
            raise StorageError("two images of the specimen share a channel", got=", ".join(used))
        for what, length in (("pixel size", self.pixel_size_um), ("z step", self.z_step_um)):
            if not (math.isfinite(length) and length > 0):
                raise StorageError(f"the {what} is not a length", wanted="um above 0", got=str(length))

    @classmethod
    def from_tiff(
        cls,
        transmitted: Path,
        labels: Mapping[str, tuple[str, Path]],
        *,
        pixel_size_um: float | None = None,
        z_step_um: float | None = None,
        channel: str = "Phase",
    ) -> Self:
        """Read a specimen from (OME-)TIFF files.

        ``transmitted`` is a z-stack, planes in order, seen in the preset ``channel``; ``labels`` gives
        channel preset and file by label name; lengths default to what the metadata of ``transmitted`` say.
        StorageError for a file that cannot be read, has the wrong shape or type, or whose lengths nobody
        knows.
        """
        images = {
            name: RecordedLabel(preset, _flat(_only_channel(Path(path)).read()))
            for name, (preset, path) in labels.items()
        }
        stack = _only_channel(Path(transmitted))
        if stack.shape[0] == 1:
            _check("the transmitted stack", stack.read()[0], "(z, y, x)")
        return cls._of(stack, images, (pixel_size_um, z_step_um), channel)

    @classmethod
    def from_folder(
        cls, folder: Path, *, pixel_size_um: float | None = None, z_step_um: float | None = None
    ) -> Self:
        """Read ``phase_contrast``, ``dapi``, ``map2`` and ``nfh`` (``.ome.tif``) from a folder.

        Channels are Phase, DAPI, MAP2 and NFH; labels nuclei, dendrites and axons. A z step that neither
        the files nor you know is 1.5 um, that of the published recordings. See `from_tiff`.
        """
        folder = Path(folder)
        stack = _only_channel(folder / _PUBLISHED)
        if z_step_um is None and not stack.has_heights and stack.lengths.z_step_um is None:
            z_step_um = PUBLISHED_Z_STEP_UM
        return cls.from_tiff(
            folder / _PUBLISHED,
            {
                "nuclei": ("DAPI", folder / "dapi.ome.tif"),
                "dendrites": ("MAP2", folder / "map2.ome.tif"),
                "axons": ("NFH", folder / "nfh.ome.tif"),
            },
            pixel_size_um=pixel_size_um,
            z_step_um=z_step_um,
        )

    @classmethod
    def from_path(
        cls,
        path: Path,
        *,
        transmitted: str | None = None,
        place: tuple[str | None, int | None] = (None, None),
        pixel_size_um: float | None = None,
        z_step_um: float | None = None,
    ) -> Self:
        """Read what somebody recorded: TIFF, NDTiff, or OME-Zarr.

        Transmitted light gets the preset Phase: the channel named ``transmitted``, by default by its name, or
        the only stack. Each other channel is a label, seen in a preset of its name; stacks of it are
        projected, brightest plane by pixel. ``place`` is position and time, by default the position with most
        channels at its first time; lengths default to what the metadata say. Files as `from_folder` takes
        them are read as it does. StorageError if it cannot be read, or something is not known; says what to
        give.
        """
        path = Path(path)
        if is_published(path) and transmitted is None:
            return cls.from_folder(path, pixel_size_um=pixel_size_um, z_step_um=z_step_um)
        field = read_field(path, position=place[0], time=place[1])
        light = field.transmitted(transmitted)
        labels: dict[str, RecordedLabel] = {}
        for name in field.channels:
            if name != light:
                pixels = _counts(field.channel(name)).max(axis=0)
                labels[label_of(name, labels)] = RecordedLabel(name, pixels)
        return cls._of(field.channel(light), labels, (pixel_size_um, z_step_um), "Phase")

    @classmethod
    def _of(
        cls,
        stack: RecordedChannel,
        labels: Mapping[str, RecordedLabel],
        stated_um: tuple[float | None, float | None],
        channel: str,
    ) -> Self:
        """From an opened channel, and the pixel size and z step that the user states."""
        size_um, heights = stack.lengths_um(*stated_um)
        unfit = check_heights(heights)
        if unfit is not None:
            fix = "give another position, or record it again"
            raise StorageError(f"{stack.source}: {unfit.reason}", fix=fix)
        step_um = float(np.diff(heights).mean()) if len(heights) > 1 else PUBLISHED_Z_STEP_UM
        return cls(_counts(stack), labels, size_um, step_um, channel, heights)

    @property
    def channels(self) -> tuple[str, ...]:
        """Transmitted light first, then one channel per label."""
        return (self.channel, *(label.channel for label in self.labels.values()))

    @property
    def camera(self) -> CameraSettings:
        """A camera without noise of its own: the recording has its camera's."""
        return CameraSettings.noiseless()

    @property
    def planes_z_um(self) -> tuple[float, ...]:
        """Stage z of the recorded planes, in micrometres: 0 in the middle."""
        heights = np.arange(len(self.transmitted)) * self.z_step_um
        if self.heights_um:
            heights = np.asarray(self.heights_um)
        return tuple((heights - (heights[0] + heights[-1]) / 2).tolist())

    def render(self, view: View) -> Float32Image:
        """Light for a view, (y, x) float32; 1.0 is full scale of the recording. See `Specimen.render`."""
        if view.channel == self.channel:
            return self._sample(self._planes(view.z_um), view)
        for label in self.labels.values():
            if label.channel == view.channel:
                return self._sample([(label.pixels, 1.0)], view)
        return np.zeros(view.shape, np.float32)

    def truth(self, view: View) -> dict[str, Float32Image]:
        """Measured label images by label name, (y, x) float32, as a part of full scale."""
        return {name: self._sample([(label.pixels, 1.0)], view) for name, label in self.labels.items()}

    def _planes(self, z_um: float) -> list[tuple[Recording, float]]:
        """The planes around z with their weights."""
        place = float(np.interp(z_um, self.planes_z_um, np.arange(len(self.transmitted))))
        if abs(place - round(place)) < _SAME:
            return [(self.transmitted[round(place)], 1.0)]
        below = int(place)
        return [
            (self.transmitted[below], 1.0 - (place - below)),
            (self.transmitted[below + 1], place - below),
        ]

    def _sample(self, planes: list[tuple[Recording, float]], view: View) -> Float32Image:
        ratio = view.pixel_size_um / self.pixel_size_um
        centres_um = (view.y_um, view.x_um)
        size = self.transmitted.shape[1:]
        starts = [
            centre / self.pixel_size_um + field / 2 - count * ratio / 2
            for centre, field, count in zip(centres_um, size, view.shape, strict=True)
        ]
        if ratio > 0.5 and abs(ratio - round(ratio)) < _SAME * ratio:
            ratio, starts = float(round(ratio)), [float(round(start)) for start in starts]
        if ratio == 1.0:
            return mirror_planes(planes, (int(starts[0]), int(starts[1])), view.shape)
        (top, rows), (left, columns) = (
            resampling_matrix(start, ratio, count) for start, count in zip(starts, view.shape, strict=True)
        )
        region = mirror_planes(planes, (top, left), (rows.shape[1], columns.shape[1]))
        seen: Float32Image = np.ascontiguousarray((columns @ (rows @ region).T).T, np.float32)
        return seen


def is_published(folder: Path) -> bool:
    """Whether a folder holds files named like the published recordings, as `RecordedSpecimen.from_folder`."""
    return (folder / _PUBLISHED).is_file()


def _counts(channel: RecordedChannel) -> Any:
    """Its planes; integers of other types than cameras have as uint16."""
    pixels = channel.read()
    known = pixels.dtype in (np.uint8, np.uint16) or pixels.dtype.kind not in "iu"
    return pixels if known else as_counts(pixels, channel.source)


def _only_channel(path: Path) -> RecordedChannel:
    """Of a TIFF file that holds nothing else."""
    fields = read_file(path)
    if len(fields) > 1:
        raise StorageError(f"{path} holds several images", wanted="one", got=str(len(fields)))
    return fields[0].channel()


def _flat(pixels: Recording) -> Recording:
    """An image may be a stack of one plane."""
    return pixels[0] if len(pixels) == 1 else pixels


def _check(what: str, pixels: Recording, axes: str) -> None:
    if pixels.ndim != axes.count(",") + 1 or 0 in pixels.shape:
        raise StorageError(
            f"{what} has the wrong shape",
            wanted=f"{axes}, none empty",
            got=str(pixels.shape),
            fix="save one channel, one position and one time point per file",
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise StorageError(
            f"{what} has the wrong pixel type",
            wanted="uint8 or uint16",
            got=str(pixels.dtype),
            fix="save camera counts",
        )
