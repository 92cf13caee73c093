"""Training pairs from (OME-)TIFF files, found by patterns of their names."""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from numpy.typing import NDArray
from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.errors import AcqIslError, PairRefused, StorageError
from acq_isl.training.data.pairs import Item, Recording, as_counts
from acq_isl.training.data.source_base import Nominal, RecordedSource, picked, projected, stamp

_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3}
_PLACES = ("plate", "well", "field")


class Image(StrictModel):
    """A file, or one channel of it."""

    file: str
    """Pattern of the path below the folder; ``{plate}``, ``{well}`` and ``{field}`` stand for anything, and
    for the same in stack and labels."""
    channel: str | int | None = None
    """Name or number, for files of several channels."""


class TiffSource(RecordedSource):
    """TIFF files; every image of a file of several is a field."""

    kind: Literal["tiff"]
    folder: Path
    stack: str | Image
    labels: dict[str, str | Image] = Field(min_length=1)
    """By label name. A file that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All fields of the folder."""
        del nominal
        pattern = _regex(_image(self.stack).file)
        paths = [(path, pattern.fullmatch(path.relative_to(self.folder).as_posix()))
                 for path in sorted(self.folder.rglob("*")) if path.is_file()]  # fmt: skip
        stacks = [(path, match.groupdict()) for path, match in paths if match]
        if not stacks:
            raise StorageError(
                f"no file in {self.folder} is called like {_image(self.stack).file}",
                fix="check folder and pattern; {well} and {field} stand for the parts that vary",
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
        return path if path.is_file() else None

    def _fields(self, path: Path, places: dict[str, str], labels: dict[str, Path]) -> Iterator[Item]:
        source = self.model_copy(update={"plate": places.get("plate", self.plate)})
        well = places.get("well", self.well)
        base = places.get("field") or ("" if "well" in places else path.name.split(".")[0])
        count = _count(path)
        for series in range(count):
            field = base if count == 1 else f"{base}#{series}"
            yield Item(
                name=source.name(well, field),
                well=source.place(well),
                stamp=stamp([path, *labels.values()], self.model_dump(mode="json"), series),
                load=_Load(self, path, labels, series),
                labels=tuple(labels),
                plate=source.plate,
            )


@dataclass(frozen=True, slots=True)
class _Load:
    source: TiffSource
    path: Path
    labels: dict[str, Path]
    series: int

    def __call__(self) -> Recording:
        source = self.source
        pixels, found = _read(self.path, _image(source.stack).channel, self.series)
        stack = as_counts(pixels, f"the stack {self.path}")
        images = {}
        for name, path in self.labels.items():
            label, _ = _read(path, _image(source.labels[name]).channel, self.series)
            images[name] = projected(label)
        lengths = source.lengths(str(self.path), len(stack), found)
        return Recording(stack, images, *lengths)


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


def _count(path: Path) -> int:
    with _opened(path) as file:
        return len(file.series)


def _read(
    path: Path, channel: str | int | None, series: int
) -> tuple[NDArray[Any], tuple[float | None, float | None]]:
    """(z, y, x) pixels of one channel, pixel size and z step."""
    with _opened(path) as file:
        if series >= len(file.series):
            raise PairRefused(
                f"{path} has fewer images than its stack",
                wanted=f"image {series}",
                got=f"{len(file.series)} images",
                fix="save one field per file",
            )
        one = file.series[series]
        pages = [page for page in one.pages if page is not None]
        if any(first + count > file.filehandle.size for page in pages for first, count in _chunks(page)):
            raise StorageError(f"{path} ends too early", fix="copy it anew from where it was recorded")
        names, lengths = _metadata(path, file, series)
        return picked(one.asarray(), one.axes, channel, names, str(path)), lengths


def _chunks(page: Any) -> Iterator[tuple[int, int]]:
    return zip(page.dataoffsets, page.databytecounts, strict=True)


class _Heard(logging.Handler):
    """tifffile only logs that a file ends too early, and goes on with what there is."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class _Opened:
    """tifffile's reader, whose many errors become one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard = _Heard()

    def __enter__(self) -> Any:
        import tifffile

        logging.getLogger("tifffile").addHandler(self._heard)
        try:
            self._file = tifffile.TiffFile(self._path)
            len(self._file.pages)  # finds all of them, or the place where the file ends
            if self._heard.texts:
                self._file.close()
                raise ValueError(self._heard.texts[0])
        except FileNotFoundError as error:
            raise StorageError(f"there is no file {self._path}", fix="check the folder and name") from error
        except (OSError, ValueError, tifffile.TiffFileError) as error:
            raise self._unreadable(error) from error
        finally:
            logging.getLogger("tifffile").removeHandler(self._heard)
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, AcqIslError):
            return
        if isinstance(error, (OSError, ValueError, LookupError, struct.error, zlib.error)):
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> StorageError:
        return StorageError(
            f"{self._path} cannot be read as a TIFF file",
            got=f"{type(error).__name__}: {error}",
            fix="copy it anew from where it was recorded, or save it uncompressed",
        )


def _opened(path: Path) -> _Opened:
    return _Opened(path)


def _metadata(path: Path, file: Any, series: int) -> tuple[list[str], tuple[float | None, float | None]]:
    """Channel names, pixel size and z step, from OME or ImageJ metadata."""
    if file.is_imagej and file.imagej_metadata:
        info = file.imagej_metadata
        unit = _UM.get(str(info.get("unit", "")).replace("\\u00B5", "µ"))
        step = float(info["spacing"]) * unit if unit and "spacing" in info else None
        return list(info.get("Labels") or ()), (_resolution(file, unit), step)
    if not file.ome_metadata:
        return [], (None, None)
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError as error:
        raise StorageError(f"the OME metadata of {path} is not XML", got=str(error)) from error
    images = [element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]
    if series >= len(images):
        return [], (None, None)
    pixels = images[series]
    names = [e.get("Name") or str(at) for at, e in enumerate(
        e for e in pixels if e.tag.rpartition("}")[2] == "Channel")]  # fmt: skip
    x_um, y_um, z_um = (_length_um(pixels.attrib, f"PhysicalSize{axis}") for axis in "XYZ")
    if x_um and y_um and abs(x_um - y_um) > 1e-3 * x_um:
        raise PairRefused(f"{path} has pixels that are not square", got=f"{x_um:g} x {y_um:g} um")
    return names, (x_um, z_um)


def _length_um(attributes: dict[str, str], name: str) -> float | None:
    unit = _UM.get(attributes.get(f"{name}Unit", "µm"))
    try:
        return float(attributes[name]) * unit if unit is not None and name in attributes else None
    except ValueError:
        return None


def _resolution(file: Any, unit: float | None) -> float | None:
    tag = file.pages[0].tags.get("XResolution")
    if unit is None or tag is None or not tag.value[0]:
        return None
    return float(tag.value[1] / tag.value[0] * unit)
