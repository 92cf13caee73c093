"""Finds recorded pairs below a path: folders of TIFF or published PNG files, or sources listed in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import PairRefused, StorageError
from acq_isl.files import load_yaml, read_text
from acq_isl.manifest import Manifest
from acq_isl.readers.read import find_reader, read_data_set
from acq_isl.readers.tiff import TiffReader, read_file, stem
from acq_isl.training.data.pairs import Item, Nominal
from acq_isl.training.data.sources import GooglePngSource, Image, RecordingSource, Source, TiffSource

_SUFFIXES = (".tif", ".tiff")
_WELL = re.compile(r"[A-P](0?[1-9]|1\d|2[0-4])", re.IGNORECASE)
_FIX = "put one z-stack and its label images into a folder of their own, or list sources in a .yaml file"


def find_items(paths: Iterable[Path], manifest: Manifest, z_step_um: float | None = None) -> list[Item]:
    """All fields below some paths.

    In a folder, every folder below it that holds one TIFF z-stack with flat TIFF images beside it is a
    field, the images named after their labels, the folder after its well (``A4``) if it can be. Folders of
    the published data set, and data sets of other formats (one channel of transmitted light, the others
    labels), are read as such. A ``.yaml`` file is a list of sources, as for training. The z step is for TIFF
    files that do not say it. `PairRefused` if there is nothing, or two fields of the same name.
    """
    nominal = Nominal(manifest.planes, manifest.pixel_size_um, manifest.z_step_um)
    items = [item for path in paths for item in _items(Path(path), nominal, z_step_um)]
    names = [item.name for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PairRefused(
            "two fields have the same name", got=", ".join(twice[:5]), fix="give each path once"
        )
    return items


def _items(path: Path, nominal: Nominal, z_step_um: float | None) -> Iterator[Item]:
    if path.suffix in (".yaml", ".yml"):
        for source in _sources(path):
            yield from source.items(nominal)
        return
    if not path.is_dir():
        raise PairRefused(
            f"there is no folder {path}", wanted="a folder of recorded pairs", fix="check the path"
        )
    reader = find_reader(path)
    if reader is not None and not isinstance(reader, TiffReader) and not any(path.glob("*.png")):
        yield from _other_fields(path, z_step_um).items(nominal)
    elif fields := list(_tiff_fields(path, nominal, z_step_um)):
        yield from fields
    elif any(path.rglob("*.png")):
        yield from GooglePngSource(kind="google_png", folder=path, z_step_um=z_step_um).items(nominal)
    else:
        yield from _other_fields(path, z_step_um).items(nominal)


def _other_fields(path: Path, z_step_um: float | None) -> RecordingSource:
    """A data set of another format, whose channels other than transmitted light are labels."""
    try:
        data = read_data_set(path)
        light = data.fields[0].transmitted()
    except StorageError as error:
        raise PairRefused(f"no pairs in {path}", got=str(error), fix=_FIX) from error
    stains: dict[str, str | int] = {
        name: name for field in data.fields for name in field.channels if name != light
    }
    if not stains:
        raise PairRefused(f"no pairs in {path}", wanted="label images", got=light, fix=_FIX)
    return RecordingSource(kind="recording", path=path, stack=light, labels=stains, z_step_um=z_step_um)


def _sources(path: Path) -> Sequence[Source]:
    try:
        listed = load_yaml(read_text(path))
        found: Sequence[Source] = TypeAdapter(list[Source]).validate_python(listed)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise PairRefused(
            f"{path} is no list of sources",
            wanted="a list such as - {kind: tiff, folder: one, stack: '{well}.tif', labels: {nuclei: ...}}",
            got=str(error).partition("\n")[0],
            fix="see docs/training.md",
        ) from error
    return found


def _tiff_fields(root: Path, nominal: Nominal, z_step_um: float | None) -> Iterator[Item]:
    for folder in (root, *sorted(path for path in root.rglob("*") if path.is_dir())):
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in _SUFFIXES)
        if not files:
            continue
        stacks = [file for file in files if _planes(file) > 1]
        if len(stacks) != 1 or len(files) < 2:
            raise PairRefused(
                f"it is not clear what is a pair in {folder}",
                wanted="one file with several planes, and flat images of labels beside it",
                got=f"{len(stacks)} stacks in {len(files)} files",
                fix=_FIX,
            )
        labels = {stem(file): Image(file=file.name) for file in files if file != stacks[0]}
        well = folder.name if _WELL.fullmatch(folder.name) else None
        source = TiffSource(
            kind="tiff",
            folder=folder,
            stack=Image(file=stacks[0].name),
            labels=labels,
            well=well,
            z_step_um=z_step_um,
        )
        name = folder.name if folder == root else folder.relative_to(root.parent).as_posix()
        for number, item in enumerate(source.items(nominal)):
            yield replace(item, name=name if number == 0 else f"{name}#{number}")


def _planes(path: Path) -> int:
    """Planes of a file; 0 if it is none that can be read, which is told when its turn comes."""
    try:
        return read_file(path)[0].open_channel(0).shape[0]
    except StorageError:
        return 0
