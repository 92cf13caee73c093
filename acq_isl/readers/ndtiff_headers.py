"""The images of NDTiff files by their own headers: what is left where the index was never written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from acq_isl.errors import StorageError
from acq_isl.readers.ndtiff import Axes, NdtiffImage, index_entries

# Tags of ndstorage's writer: width, height, bits, first byte and size of the pixels, metadata as JSON.
_WIDTH, _HEIGHT, _BITS, _PIXELS, _PIXEL_BYTES, _METADATA = 256, 257, 258, 273, 279, 51123
_KINDS = {8: 0, 16: 1}  # as the index numbers types of pixels
_MOST_TAGS = 64


def all_images(folder: Path) -> list[NdtiffImage]:
    """Every whole image of a data set, of its index and else of its files; nothing is written.

    A killed process leaves an index without its last entries, a power failure perhaps none at all.
    """
    try:
        entries = list(index_entries(folder))
    except (OSError, StorageError):
        entries = []
    known = {tuple(sorted(axes.items())): (axes, rest) for axes, rest in entries}
    for file in sorted(folder.glob("*.tif")):
        for axes, rest in _entries_of(file):
            known.setdefault(tuple(sorted(axes.items())), (axes, rest))
    return [NdtiffImage(folder, axes, rest) for axes, rest in known.values()]


def _entries_of(file: Path) -> Iterator[tuple[Axes, bytes]]:
    """Entries as the index would have them, up to the first image that is not whole."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        header = _read(opened, 0, 8)
        (offset,) = struct.unpack_from("<I", header, 4) if len(header) == 8 else (0,)
        while offset and (found := _entry(opened, offset, size, file.name)) is not None:
            axes, rest, following = found
            yield axes, rest
            offset = following if following > offset else 0


def _entry(file: BinaryIO, offset: int, size: int, name: str) -> tuple[Axes, bytes, int] | None:
    """The image whose directory is at ``offset``, and where the next one is; None if it is not whole."""
    count = int.from_bytes(_read(file, offset, 2), "little")
    block = _read(file, offset + 2, 12 * count + 4)
    if not 0 < count <= _MOST_TAGS or len(block) < 12 * count + 4:
        return None
    tags = {}
    for at in range(0, 12 * count, 12):
        tag, _, length, value = struct.unpack_from("<HHII", block, at)
        tags[tag] = (length, value)
    if not tags.keys() >= {_WIDTH, _HEIGHT, _BITS, _PIXELS, _PIXEL_BYTES, _METADATA}:
        return None
    (length, about), pixels, kind = tags[_METADATA], tags[_PIXELS][1], _KINDS.get(tags[_BITS][1] & 0xFFFF)
    if kind is None or max(about + length, pixels + tags[_PIXEL_BYTES][1]) > size:
        return None
    try:
        axes = json.loads(_read(file, about, length))["Axes"]
    except (ValueError, KeyError, TypeError):
        return None  # written before its pixels and metadata were
    numbers = (pixels, tags[_WIDTH][1], tags[_HEIGHT][1], kind, 0, about, length, 0)
    encoded = name.encode()
    entry = struct.pack("<I", len(encoded)) + encoded + struct.pack("<8I", *numbers)
    return axes, entry, struct.unpack_from("<I", block, 12 * count)[0]


def _read(file: BinaryIO, first: int, count: int) -> bytes:
    file.seek(first)
    return file.read(count)
