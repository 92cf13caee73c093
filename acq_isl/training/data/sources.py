"""Where training pairs come from: one kind of source for each way in which people keep them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.errors import PairRefused, StorageError
from acq_isl.readers.image_folder import MASK, ImageFolderReader, is_plane_of_stack
from acq_isl.readers.ndtiff import INDEX, NdtiffReader
from acq_isl.readers.ome_zarr import OmeZarrReader
from acq_isl.readers.read import read_data_set
from acq_isl.readers.recording import DataSet, RecordedChannel, RecordedField, as_counts
from acq_isl.readers.tiff import read_file, stem
from acq_isl.training.data.pairs import Item, Nominal, Recording
from acq_isl.training.data.source_simulated import LABELS as SIMULATED_LABELS
from acq_isl.training.data.source_simulated import SimulationConfig, simulate

_PLACES = ("plate", "well", "field")
_STAINS = {
    "nuclei": "DAPI_CONFOCAL", "dendrites": "MAP2_CONFOCAL", "axons": "NFH_CONFOCAL",
    "neurons": "TUJ1_WIDEFIELD", "motor neurons": "ISLET_WIDEFIELD", "dead cells": "DEAD_CONFOCAL",
    "membranes": "CELLMASK_CONFOCAL",
}  # fmt: skip

Which = str | int | None


def stamp(files: Iterable[Path], *settings: object) -> str:
    """Changes when a file or a setting does."""
    content = hashlib.sha256(repr(settings).encode())
    for path in files:
        state = path.stat()
        content.update(f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return content.hexdigest()


def projected(stack: NDArray[Any]) -> NDArray[Any]:
    """A label image: the maximum over z, which is what the published data set holds."""
    image: NDArray[Any] = stack[0] if len(stack) == 1 else stack.max(axis=0)
    return image


class RecordedSource(StrictModel):
    """What may be said of every kind of recorded images."""

    plate: str = ""
    """For names, and so that wells of two plates differ."""
    well: str | None = None
    """Of all its fields, where names or metadata do not say."""
    pixel_size_um: float | None = Field(default=None, gt=0)
    """Overrules the metadata."""
    z_step_um: float | None = Field(default=None, gt=0)
    """Overrules the metadata; where they tell the height of each plane it scales the distances."""

    def name(self, well: str | None, field: str) -> str:
        """Of a field: plate, well, field."""
        return "/".join(part for part in (self.plate, well, field) if part)

    def place(self, well: str | None) -> str | None:
        """Plate and well, or None if the well is not known."""
        return None if well is None else self.name(well, "")

    def recorded(
        self, field: RecordedField, names: tuple[str, str], well: str | None, channels: Channels
    ) -> Item:
        """A field whose stack and labels are channels of the same data set.

        Parameters
        ----------
        field : RecordedField
        names : (str, str)
            Of the field, and of its place at whatever time.
        well : str or None
        channels : Channels
        """
        labels = {
            label: which
            for label, which in channels.labels.items()
            if which in field.channels or isinstance(which, int)
        }
        masks = {
            label: f"{which}{MASK}" for label, which in labels.items() if f"{which}{MASK}" in field.channels
        }
        return Item(
            name=names[0],
            well=self.place(well),
            stamp=stamp(field.files, self.model_dump(mode="json"), field.name, field.time),
            load=_Load(
                self,
                partial(field.channel, channels.stack),
                {label: partial(field.channel, which) for label, which in labels.items()},
                {label: partial(field.channel, which) for label, which in masks.items()},
            ),
            labels=tuple(labels),
            plate=self.plate,
            field=names[1],
        )


@dataclass(frozen=True, slots=True)
class Channels:
    """Which channels of a data set are the stack of transmitted light and the labels."""

    stack: Which
    labels: Mapping[str, Which]


@dataclass(frozen=True, slots=True)
class _Load:
    """Reads a pair from opened channels."""

    source: RecordedSource
    stack: Callable[[], RecordedChannel]
    labels: Mapping[str, Callable[[], RecordedChannel]]
    masks: Mapping[str, Callable[[], RecordedChannel]]

    def __call__(self) -> Recording:
        stack = self.stack()
        size_um, z_um = stack.lengths_um(self.source.pixel_size_um, self.source.z_step_um)
        counts = as_counts(stack.read(), f"the stack {stack.source}")
        images = {name: projected(open_label().read()) for name, open_label in self.labels.items()}
        valid = {name: open_mask().read()[0] > 0 for name, open_mask in self.masks.items()}
        return Recording(counts, images, size_um, z_um, valid=valid)


class Image(StrictModel):
    """A file, or one channel of it."""

    file: str
    """Pattern of the path below the folder; ``{plate}``, ``{well}`` and ``{field}`` stand for anything, and
    for the same in stack and labels."""
    channel: str | int | None = None
    """Name or number, for files of several channels."""


class TiffSource(RecordedSource):
    """TIFF files, or folders of Micro-Manager's image files; every image of a file of several is a field."""

    kind: Literal["tiff"]
    folder: Path
    stack: str | Image
    labels: dict[str, str | Image] = Field(min_length=1)
    """By label name. A file that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All fields of the folder."""
        del nominal
        stack = _image(self.stack)
        pattern = _regex(stack.file)
        found = [(path, pattern.fullmatch(path.relative_to(self.folder).as_posix()))
                 for path in sorted(self.folder.rglob("*"))]  # fmt: skip
        stacks = [(path, match.groupdict()) for path, match in found
                  if match and (path.is_file() or ImageFolderReader().recognises(path))]  # fmt: skip
        if not stacks:
            raise StorageError(
                f"no file in {self.folder} is called like {stack.file}",
                fix="check folder and pattern; {well} and {field} stand for the parts that vary",
            )
        single = next((path for path, _ in stacks if is_plane_of_stack(path)), None)
        if single is not None:
            raise PairRefused(
                f"{single} is one plane of a z-stack",
                wanted="the folder of Micro-Manager's image files as the pattern, and the channels",
                fix=f"stack: {{file: {single.parent.name}, channel: ...}}, or {{field}} for several folders",
            )
        for path, places in stacks:
            labels = {name: self._beside(_image(label), places) for name, label in self.labels.items()}
            yield from self._fields(path, places, {n: p for n, p in labels.items() if p is not None})

    def _beside(self, label: Image, places: dict[str, str]) -> Path | None:
        text = label.file
        for key, value in places.items():
            text = text.replace("{" + key + "}", value)
        if "{" in text:
            raise PairRefused(
                f"the pattern {label.file} has a part that the stack's pattern has not",
                fix="use the same of {plate}, {well} and {field} in both",
            )
        path = self.folder / text
        return path if path.exists() else None

    def _fields(self, path: Path, places: dict[str, str], labels: dict[str, Path]) -> Iterator[Item]:
        source = self.model_copy(update={"plate": places.get("plate", self.plate)})
        well = places.get("well", self.well)
        base = places.get("field") or ("" if "well" in places else stem(path))
        fields = _tiff_fields(path)
        positions = list(dict.fromkeys(field.name for field in fields))
        for number, field in enumerate(fields):
            position = positions.index(field.name)
            place = base if len(positions) == 1 else f"{base}#{position}"
            yield Item(
                name=source.name(well, _at(place, field.time)),
                well=source.place(well),
                stamp=stamp([*field.files, *labels.values()], self.model_dump(mode="json"), number),
                load=_Load(
                    self,
                    _opener(path, number, _image(self.stack).channel),
                    {n: _opener(p, number, _image(self.labels[n]).channel) for n, p in labels.items()},
                    {},
                ),
                labels=tuple(labels),
                plate=source.plate,
                field=source.name(well, place),
            )


def _tiff_fields(path: Path) -> Sequence[RecordedField]:
    return ImageFolderReader().read(path).fields if path.is_dir() else read_file(path)


def _opener(path: Path, number: int, channel: Which) -> Callable[[], RecordedChannel]:
    """Opens a channel of one of the fields of a file."""

    def open_channel() -> RecordedChannel:
        fields = _tiff_fields(path)
        if number >= len(fields):
            raise PairRefused(
                f"{path} has fewer images than its stack",
                wanted=f"image {number}",
                got=f"{len(fields)} images",
                fix="save one field and time point per file",
            )
        return fields[number].channel(channel)

    return open_channel


def _at(place: str, time: int) -> str:
    """Name of a place at a time."""
    return f"{place} t{time}".strip() if time else place


def _image(value: str | Image) -> Image:
    return Image(file=value) if isinstance(value, str) else value


def _regex(pattern: str) -> re.Pattern[str]:
    parts, seen = [], set()
    for text in re.split(r"(\{\w+\}|\*)", pattern):
        name = text.strip("{}")
        if text == "*":
            parts.append("[^/]*")
        elif text.startswith("{") and name not in _PLACES:
            raise PairRefused(
                f"the pattern {pattern} has an unknown part {text}", wanted="{plate}, {well} or {field}"
            )
        elif text.startswith("{"):
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)")
            seen.add(name)
        else:
            parts.append(re.escape(text))
    return re.compile("".join(parts))


class NdtiffSource(RecordedSource):
    """One or more NDTiff data sets; every position and time point is a field, every position a well's part.

    Positions called ``A1_003`` or ``A1-Site_3`` lie in well A1.
    """

    kind: Literal["ndtiff"]
    folder: Path
    """A data set, or a folder of data sets."""
    stack: str
    """Channel of transmitted light."""
    labels: dict[str, str] = Field(min_length=1)
    """Channel by label name; a channel that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All positions and times that have the stack."""
        del nominal
        # Of a pyramid only the full resolution, which lies in a folder of its own.
        found = {path.parent for path in self.folder.rglob(INDEX) if not path.parent.name.startswith("Down")}
        sets = sorted(path.parent if path.name == "Full resolution" else path for path in found)
        if not sets:
            raise StorageError(
                f"{self.folder} is not an NDTiff data set", wanted=f"a file {INDEX}", fix="check the folder"
            )
        for folder in sets:
            data = NdtiffReader().read(folder)
            yield from _fields_of(self, data, f"{folder.name}:" * (len(sets) > 1))


class RecordingSource(RecordedSource):
    """A data set of any format that a reader is installed for."""

    kind: Literal["recording"]
    path: Path
    stack: str | int
    """Channel of transmitted light, name or number."""
    labels: dict[str, str | int] = Field(min_length=1)
    """Channel by label name; a name that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All positions and times that have the stack."""
        del nominal
        return _fields_of(self, read_data_set(self.path), "")


def _fields_of(source: NdtiffSource | RecordingSource, data: DataSet, before: str) -> Iterator[Item]:
    """Every position and time of a data set that has the stack."""
    fields = [f for f in data.fields if source.stack in f.channels or isinstance(source.stack, int)]
    if not fields:
        found = sorted({name for field in data.fields for name in field.channels})
        raise PairRefused(
            f"{data.path} has no channel {source.stack}", got=", ".join(found), fix="check stack"
        )
    for field in fields:
        place = source.name(None, f"{before}{field.name}")
        well = source.well if source.well is not None else field.well
        yield source.recorded(
            field, (_at(place, field.time), place), well, Channels(source.stack, source.labels)
        )


class ZarrSource(RecordedSource):
    """OME-Zarr: an image, a plate, a collection, or a folder of these; each image is a field."""

    kind: Literal["ome_zarr"]
    path: Path
    stack: str | int
    """Channel of transmitted light, name or number."""
    labels: dict[str, str | int] = Field(min_length=1)
    """Channel by label name; a name that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All images below the path."""
        del nominal
        for field in OmeZarrReader().read(self.path).fields:
            well = field.well if field.well is not None else self.well
            place = self.name(None if field.well is not None else well, field.name)
            yield self.recorded(
                field, (_at(place, field.time), place), well, Channels(self.stack, self.labels)
            )


class GooglePngSource(RecordedSource):
    """Folders of the In Silico Labeling data set; predictions in them are left alone."""

    kind: Literal["google_png"]
    folder: Path
    labels: dict[str, str] = Field(default_factory=lambda: dict(_STAINS))
    """Channel by label name; a channel that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All fields of view below the folder."""
        del nominal
        for field in ImageFolderReader().read(self.folder).fields:
            source = self.model_copy(update={"plate": self.plate or field.plate})
            well = field.well or self.well
            name = source.name(well, field.name) or str(field.source)
            yield source.recorded(field, (name, ""), well, Channels(0, self.labels))


class SimulatedSource(StrictModel):
    """Fields of the simulated microscope, each of another specimen."""

    kind: Literal["simulated"]
    simulation: SimulationConfig = SimulationConfig()

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """The fields to train on."""
        return self._items(nominal, range(self.simulation.fields))

    def held_out_items(self, nominal: Nominal) -> Iterator[Item]:
        """Fields of other specimens, for validation where nothing was recorded."""
        first = self.simulation.fields
        return self._items(nominal, range(first, first + self.simulation.held_out))

    def _items(self, nominal: Nominal, indices: range) -> Iterator[Item]:
        for index in indices:
            name = f"simulated {self.simulation.seed}/{index}"
            yield Item(
                name=name,
                well=name,
                stamp=stamp((), asdict(self.simulation), index),
                load=_Simulate(self.simulation, index, nominal),
                simulated=True,
                labels=SIMULATED_LABELS,
            )


@dataclass(frozen=True, slots=True)
class _Simulate:
    config: SimulationConfig
    index: int
    nominal: Nominal

    def __call__(self) -> Recording:
        pair = simulate(self.config, self.index)
        labels = dict(zip(SIMULATED_LABELS, pair.labels, strict=True))
        # Pixel size and z step vary about the nominal ones on purpose, and nothing is resampled.
        return Recording(
            pair.stack, labels, self.nominal.pixel_size_um, self.nominal.z_um, truth_range=(0.0, 255.0)
        )


Source = Annotated[
    SimulatedSource | TiffSource | NdtiffSource | ZarrSource | GooglePngSource | RecordingSource,
    Field(discriminator="kind"),
]
