"""Where training pairs come from: one kind of source for each way in which people keep them."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from acq_isl.base import StrictModel
from acq_isl.errors import PairRefused, StorageError
from acq_isl.readers.image_folder import MASK, ImageFolderReader, is_plane_of_stack, png_field
from acq_isl.readers.ndtiff import INDEX, NdtiffReader
from acq_isl.readers.ome_zarr import OmeZarrReader
from acq_isl.readers.read import read_data_set
from acq_isl.readers.recording import DataSet, RecordedChannel, RecordedField, as_counts
from acq_isl.readers.tiff import read_file, stem
from acq_isl.training.data.pairs import Item, Nominal, Recording
from acq_isl.training.data.source_epithelium import LABELS as EPITHELIAL_LABELS
from acq_isl.training.data.source_epithelium import EpitheliumConfig, simulate_epithelium
from acq_isl.training.data.source_simulated import LABELS as SIMULATED_LABELS
from acq_isl.training.data.source_simulated import SimulationConfig, is_live, simulate

_PLACES = ("plate", "well", "field")
_STAINS: dict[str, str | int] = {
    "nuclei": "DAPI_CONFOCAL", "dendrites": "MAP2_CONFOCAL", "axons": "NFH_CONFOCAL",
    "neurons": "TUJ1_WIDEFIELD", "motor neurons": "ISLET_WIDEFIELD", "dead cells": "DEAD_CONFOCAL",
    "membranes": "CELLMASK_CONFOCAL",
}  # fmt: skip

Which = str | int | None
Opener = Callable[[], RecordedChannel]


def stamp(files: Iterable[Path], *settings: object) -> str:
    """Changes when a file or a setting does."""
    content = hashlib.sha256(repr(settings).encode())
    for path in files:
        state = path.stat()
        content.update(f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return content.hexdigest()


def project(stack: NDArray[Any]) -> NDArray[Any]:
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

    def name(self, *parts: str | None) -> str:
        """Of a well or field, below its plate."""
        return "/".join(part for part in (self.plate, *parts) if part)

    def load(self, stack: Opener, labels: Mapping[str, Opener], masks: Mapping[str, Opener]) -> Recording:
        """Read a pair from channels that are opened now."""
        opened = stack()
        lengths = opened.lengths_um(self.pixel_size_um, self.z_step_um)
        counts = as_counts(opened.read(), f"the stack {opened.source}")
        images = {name: project(open_label().read()) for name, open_label in labels.items()}
        valid = {name: open_mask().read()[0] > 0 for name, open_mask in masks.items()}
        return Recording(counts, images, *lengths, valid=valid)


class Image(StrictModel):
    """A file, or one channel of it."""

    file: str
    """Pattern of the path below the folder; ``{plate}``, ``{well}`` and ``{field}`` stand for anything, and
    for the same in stack and labels."""
    channel: str | int | None = None
    """Name or number, for files of several channels."""
    plane: int | None = Field(default=None, ge=0)
    """The only plane that counts, for files whose pages are channels and do not say so."""


def _as_image(value: object) -> object:
    return {"file": value} if isinstance(value, str) else value


Pattern = Annotated[Image, BeforeValidator(_as_image)]
"""An `Image`, or its file alone."""


class TiffSource(RecordedSource):
    """TIFF files, gray PNG files, or folders of Micro-Manager's image files; every image of a file of
    several is a field."""

    kind: Literal["tiff"]
    folder: Path
    stack: Pattern
    labels: dict[str, Pattern] = Field(min_length=1)
    """By label name. A file that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All fields of the folder."""
        del nominal
        pattern = _regex(self.stack.file)
        found = [(path, pattern.fullmatch(path.relative_to(self.folder).as_posix()))
                 for path in sorted(self.folder.rglob("*"))]  # fmt: skip
        stacks = [(path, match.groupdict()) for path, match in found
                  if match and (path.is_file() or ImageFolderReader().recognises(path))]  # fmt: skip
        if not stacks:
            raise StorageError(
                f"no file in {self.folder} is called like {self.stack.file}",
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
            labels = {name: self._beside(label, places) for name, label in self.labels.items()}
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
            place = base if len(positions) == 1 else f"{base}#{positions.index(field.name)}"
            openers = {n: _opener(p, number, self.labels[n]) for n, p in labels.items()}
            yield Item(
                name=source.name(well, _at(place, field.time)),
                well=None if well is None else source.name(well),
                stamp=stamp([*field.files, *labels.values()], self.model_dump(mode="json"), number),
                load=partial(self.load, _opener(path, number, self.stack), openers, {}),
                labels=tuple(labels),
                plate=source.plate,
                field=source.name(well, place),
            )


def _tiff_fields(path: Path) -> Sequence[RecordedField]:
    if path.suffix.lower() == ".png":
        return [png_field(path)]
    return ImageFolderReader().read(path).fields if path.is_dir() else read_file(path)


def _opener(path: Path, number: int, image: Image) -> Opener:
    """What opens a channel, or one plane of it, of one of the fields of a file."""

    def open_channel() -> RecordedChannel:
        fields = _tiff_fields(path)
        if number >= len(fields):
            raise PairRefused(
                f"{path} has fewer images than its stack",
                wanted=f"image {number}",
                got=f"{len(fields)} images",
                fix="save one field and time point per file",
            )
        channel = fields[number].channel(image.channel)
        return channel if image.plane is None else channel.only(image.plane)

    return open_channel


def _at(place: str, time: int) -> str:
    """Name of a place at a time."""
    return f"{place} t{time}".strip() if time else place


def _regex(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    for text in re.split(r"(\{\w+\}|\*)", pattern):
        name = text.strip("{}")
        if text == "*":
            parts.append("[^/]*")
        elif text.startswith("{") and name not in _PLACES:
            raise PairRefused(
                f"the pattern {pattern} has an unknown part {text}", wanted="{plate}, {well} or {field}"
            )
        elif text.startswith("{"):
            first = f"(?P<{name}>[^/]+?)"
            parts.append(f"(?P={name})" if first in parts else first)
        else:
            parts.append(re.escape(text))
    return re.compile("".join(parts))


class ChannelSource(RecordedSource):
    """Stacks and labels that are channels of a data set; each of its fields is one."""

    stack: str | int
    """Channel of transmitted light, name or number."""
    labels: dict[str, str | int] = Field(min_length=1)
    """Channel by label name; one that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All positions and times that have the stack."""
        del nominal
        sets = self._data_sets()
        for data in sets:
            fields = [field for field in data.fields if _has(field, self.stack)]
            if not fields:
                found = sorted({name for field in data.fields for name in field.channels})
                raise PairRefused(
                    f"{data.path} has no channel {self.stack}", got=", ".join(found), fix="check stack"
                )
            before = f"{data.path.name}:" if len(sets) > 1 else ""
            # Of a run some fields were stained, and the others teach nothing.
            shown = [field for field in fields if any(_has(field, each) for each in self.labels.values())]
            for field in shown or fields:
                source = self.model_copy(update={"plate": self.plate or field.plate})
                yield source._item(field, before)

    @abstractmethod
    def _data_sets(self) -> Sequence[DataSet]: ...

    def _name(self, field: RecordedField, before: str) -> str:
        return self.name(before + field.name)

    def _item(self, field: RecordedField, before: str) -> Item:
        labels = {label: which for label, which in self.labels.items() if _has(field, which)}
        masks = {label: f"{which}{MASK}" for label, which in labels.items() if _has(field, f"{which}{MASK}")}
        openers = {label: partial(field.channel, which) for label, which in labels.items()}
        mask_openers = {label: partial(field.channel, which) for label, which in masks.items()}
        place, well = self._name(field, before), self._well(field)
        return Item(
            name=_at(place, field.time),
            well=None if well is None else self.name(well),
            stamp=stamp(field.files, self.model_dump(mode="json"), field.name, field.time),
            load=partial(self.load, partial(field.channel, self.stack), openers, mask_openers),
            labels=tuple(labels),
            plate=self.plate,
            field=place,  # the same place at another time is the same field
        )

    def _well(self, field: RecordedField) -> str | None:
        return field.well if field.well is not None else self.well


def _has(field: RecordedField, which: str | int) -> bool:
    return which < len(field.channels) if isinstance(which, int) else which in field.channels


class NdtiffSource(ChannelSource):
    """One or more NDTiff data sets; every position and time point is a field, every position a well's part.
    Positions called ``A1_003`` or ``A1-Site_3`` lie in well A1."""

    kind: Literal["ndtiff"]
    folder: Path
    """A data set, or a folder of data sets."""

    def _data_sets(self) -> Sequence[DataSet]:
        # Of a pyramid only the full resolution, which lies in a folder of its own.
        inside = {path.parent for path in self.folder.rglob(INDEX)}
        sets = {path.parent if path.name == "Full resolution" else path for path in inside}
        found = [NdtiffReader().read(path) for path in sorted(sets) if path.parent not in sets]
        if not found:
            raise StorageError(
                f"{self.folder} is not an NDTiff data set", wanted=f"a file {INDEX}", fix="check the folder"
            )
        return found

    def _well(self, field: RecordedField) -> str | None:
        return self.well if self.well is not None else field.well


class RecordingSource(ChannelSource):
    """A data set of any format that a reader is installed for."""

    kind: Literal["recording"]
    path: Path

    def _data_sets(self) -> Sequence[DataSet]:
        return [read_data_set(self.path)]


class ZarrSource(ChannelSource):
    """OME-Zarr: an image, a plate, a collection, or a folder of these; each image is a field."""

    kind: Literal["ome_zarr"]
    path: Path

    def _data_sets(self) -> Sequence[DataSet]:
        return [OmeZarrReader().read(self.path)]

    def _name(self, field: RecordedField, before: str) -> str:
        return self.name(None if field.well is not None else self.well, field.name)


class GooglePngSource(ChannelSource):
    """Folders of the In Silico Labeling data set; predictions in them are left alone."""

    kind: Literal["google_png"]
    folder: Path
    stack: Literal[0] = 0
    labels: dict[str, str | int] = Field(default_factory=lambda: dict(_STAINS))

    def _data_sets(self) -> Sequence[DataSet]:
        return [ImageFolderReader().read(self.folder)]

    def _name(self, field: RecordedField, before: str) -> str:
        return self.name(self._well(field), field.name) or str(field.source)


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
                load=partial(_simulate, self.simulation, index, nominal),
                simulated=True,
                live=is_live(self.simulation, index),
                labels=SIMULATED_LABELS,
            )


def _simulate(config: SimulationConfig, index: int, nominal: Nominal) -> Recording:
    """Pixel size and z step vary about the nominal ones on purpose, and nothing is resampled."""
    pair = simulate(config, index)
    labels = dict(zip(SIMULATED_LABELS, pair.labels, strict=True))
    lengths = nominal.pixel_size_um, nominal.z_offsets_um
    return Recording(pair.stack, labels, *lengths, truth_range=(0.0, 255.0))


class EpithelialSource(StrictModel):
    """Fields of simulated epithelial-like cultures, each of another specimen, in any light and planes."""

    kind: Literal["simulated_epithelium"]
    simulation: EpitheliumConfig = EpitheliumConfig()

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """The fields to train on."""
        return self._items(nominal, range(self.simulation.fields))

    def held_out_items(self, nominal: Nominal) -> Iterator[Item]:
        """Fields of other specimens, for validation where nothing was recorded."""
        first = self.simulation.fields
        return self._items(nominal, range(first, first + self.simulation.held_out))

    def _items(self, nominal: Nominal, indices: range) -> Iterator[Item]:
        for index in indices:
            name = f"simulated epithelium {self.simulation.seed}/{index}"
            yield Item(
                name=name,
                well=name,
                stamp=stamp((), asdict(self.simulation), index),
                load=partial(_simulate_epithelium, self.simulation, index, nominal.pixel_size_um),
                simulated=True,
                labels=EPITHELIAL_LABELS,
            )


def _simulate_epithelium(config: EpitheliumConfig, index: int, pixel_size_um: float) -> Recording:
    """Pixel size varies about the nominal one on purpose, and is not resampled; planes are."""
    pair = simulate_epithelium(config, index)
    labels = dict(zip(EPITHELIAL_LABELS, pair.labels, strict=True))
    return Recording(pair.stack, labels, pixel_size_um, pair.z_um, truth_range=(0.0, 255.0))


Simulated = SimulatedSource | EpithelialSource
Source = Annotated[
    Simulated | TiffSource | NdtiffSource | ZarrSource | GooglePngSource | RecordingSource,
    Field(discriminator="kind"),
]
