"""Which fields at which times there are below some paths, and where each prediction will go."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from acq_isl.bulk.work import Chunk, Unreadable
from acq_isl.errors import StorageError
from acq_isl.readers.read import survey_data_set
from acq_isl.readers.recording import Damaged, RecordedField
from acq_isl.stack import StackKey
from acq_isl.storage.plate import image_path

_PREDICTED = "(predicted"


@dataclass(frozen=True, slots=True)
class Found:
    """All chunks in the order of wells, fields and times, and what cannot be read."""

    chunks: tuple[Chunk, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(slots=True)
class _Plate:
    """What one plate of the output is made from."""

    group: str
    chunks: list[Chunk] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # names that a file system may hold to be the same


def find_chunks(paths: Sequence[Path], transmitted: str | None = None) -> Found:
    """Look through data sets, reading metadata only; each folder, or the files of one folder, is a plate.

    StorageError: two paths would be plates of one name.
    """
    plates = []
    for group, members in _groups(paths).items():
        plate = _Plate(group)
        for path in members:
            _survey(plate, path, transmitted)
        plates.append(plate)
    return Found(
        tuple(chain.from_iterable(plate.chunks for plate in plates)),
        tuple(chain.from_iterable(plate.unreadable for plate in plates)),
    )


def _groups(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Paths by the name of their plate: several files of one folder are named after it."""
    paths = list(dict.fromkeys(path.resolve() for path in paths))
    in_folder = Counter(path.parent for path in paths if not path.is_dir())
    groups: dict[str, list[Path]] = {}
    for path in paths:
        together = not path.is_dir() and in_folder[path.parent] > 1
        groups.setdefault(str(path.parent if together else path), []).append(path)
    names = {place: _plain(Path(place).name) for place in groups}
    alike = Counter(name.casefold() for name in names.values())
    for place, name in names.items():
        if alike[name.casefold()] > 1:
            names[place] = f"{_plain(Path(place).parent.name)}_{name}"
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise StorageError(
            f"two data sets would be the plate {twice[0]}", fix="predict them into folders of their own"
        )
    return {names[place]: members for place, members in groups.items()}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name.partition(".")[0]).strip("_") or "data"


def _survey(plate: _Plate, path: Path, transmitted: str | None) -> None:
    """Add what a path holds to its plate."""
    try:
        data = survey_data_set(path)
    except (StorageError, OSError) as error:
        plate.unreadable.append(_unreadable(plate.group, "", path.name, error))
        return
    plate.unreadable.extend(_told(plate.group, data.damaged))
    digests: dict[tuple[Path, ...], str] = {}
    order = sorted(range(len(data.fields)), key=lambda number: _place(data.fields[number]))
    for number in order:
        recorded = data.fields[number]
        try:
            if recorded.files not in digests:
                digests[recorded.files] = _digest(path, recorded.files)
            channel = _light(recorded, transmitted)
        except (StorageError, OSError) as error:
            plate.unreadable.append(_unreadable(plate.group, recorded.well or "", _name(recorded), error))
            continue
        key = StackKey(recorded.time, _position(recorded), channel)
        plate.chunks.append(
            Chunk(
                group=plate.group, data=path, number=number, field=recorded.name, time=recorded.time,
                well=recorded.well or "", position=key.position, channel=channel,
                image=_free(image_path(key), plate.taken), input=digests[recorded.files],
            )
        )  # fmt: skip


def _told(group: str, damaged: Iterable[Damaged]) -> Iterator[Unreadable]:
    return (_unreadable(group, each.well or "", each.name, each.error) for each in damaged)


def _unreadable(group: str, well: str, name: str, error: StorageError | OSError) -> Unreadable:
    if isinstance(error, StorageError):
        reason = f"{error.what}{f' ({error.got})' if error.got else ''}"
        return Unreadable(group, well, name, reason, error.fix or "")
    return Unreadable(group, well, name, f"{type(error).__name__}: {error}", "is the drive there?")


def _light(recorded: RecordedField, transmitted: str | None) -> str:
    """Name of the channel of transmitted light; StorageError if there is none to be predicted from."""
    if recorded.channels and all(_PREDICTED in name for name in recorded.channels):
        raise StorageError(
            f"{recorded.source} holds predictions", fix="give what was measured, not what was predicted"
        )
    return recorded.transmitted(transmitted)


def _name(recorded: RecordedField) -> str:
    return f"{recorded.name} t{recorded.time}" if recorded.time else recorded.name


def _position(recorded: RecordedField) -> str:
    """Name of a field's position that begins with its well, such as ``A1_0`` of ``A/1/0``."""
    well, name = recorded.well, recorded.name
    if well is None:
        return name
    row = well.rstrip("0123456789")
    rest = re.sub(rf"^{re.escape(row)}/?{re.escape(well[len(row) :])}(?=[/_\- ]|$)", "", name)
    rest = re.sub(r"[^A-Za-z0-9]+", "_", rest).strip("_")
    return f"{well}_{rest}" if rest else well


def _place(recorded: RecordedField) -> tuple[tuple[str | int, ...], ...]:
    """Sorts A2 before A10; words before numbers never meet, since each part says which it is."""
    parts = re.findall(r"\d+|\D+", f"{recorded.well or ''} {recorded.name}")
    natural = tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)
    return (*natural, (0, recorded.time))


def _free(name: str, taken: set[str]) -> str:
    names = chain([name], (f"{name}no{number}" for number in count(2)))
    found = next(each for each in names if each.casefold() not in taken)
    taken.add(found.casefold())
    return found


def _digest(root: Path, files: Iterable[Path]) -> str:
    """Of names, sizes and times of change, so that nothing is read to see that nothing changed."""
    digest = hashlib.sha256()
    for file in sorted(files):
        status = file.stat()
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) and file != root else file.name
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
