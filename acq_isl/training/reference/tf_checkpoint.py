"""Reads TensorFlow V2 checkpoints without TensorFlow.

A checkpoint is an index, ``PREFIX.index``, and shards of raw tensor bytes, ``PREFIX.data-00000-of-00001``.
The index is a sorted string table whose values are the messages of TensorFlow's ``tensor_bundle.proto``.
Index blocks and tensors each carry a masked CRC-32C. All are checked, so a flipped bit is an error and never
a wrong weight. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import ModelError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # one byte of compression, four of CRC
_MAX_KEY_BYTES = 4096
_MAX_SNAPPY_RATIO = 32  # a Snappy copy makes at most 64 bytes of 3
_MAX_INDEX_BYTES = 256 * 2**20
_MAX_STATE_BYTES = 2**20
_MAX_SHARDS = 4096
_MAX_AXES = 16
_MAX_SIDE = 2**40
# tensorflow/core/framework/types.proto
_DTYPES: Mapping[int, str] = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?",
    17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip
_FIX = "download or copy the checkpoint again and compare file sizes; all of its files are needed"


_Value = TypeVar("_Value", int, bytes)


class Damaged(Exception):
    """Bytes that do not follow the format; the caller knows the file and says so in a ModelError."""


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data``, masked as LevelDB stores it."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Number at ``at`` (at most 64 bits) and the place after it."""
    value = 0
    for step, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * step)
        if byte < 0x80:
            return value, at + step + 1
    raise Damaged("a number without an end")


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted string table, in order; `Damaged` if it does not follow the format."""
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise Damaged("a file without the end mark of an index")
    footer = data[-_FOOTER_BYTES:]
    at = 0
    for _ in range(2):  # skips the handle of the meta index, which TensorFlow leaves empty
        at = varint(footer, at)[1]
    last_key, end = None, 0
    for _, handle in _block(data, *_handle(footer, at)):
        offset, size = _handle(handle, 0)
        if offset < end:  # overlapping blocks could make a small file very long
            raise Damaged("index blocks that overlap")
        end = offset + size
        for key, value in _block(data, offset, size):
            if last_key is not None and key <= last_key:
                raise Damaged("names out of order")
            last_key = key
            yield key, value


def _handle(data: bytes, at: int) -> tuple[int, int]:
    offset, at = varint(data, at)
    return offset, varint(data, at)[0]


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    end = offset + size
    if end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise Damaged("an index block outside of the file")
    kind, crc = struct.unpack("<BI", data[end : end + _TRAILER_BYTES])
    if masked_crc(data[offset : end + 1]) != crc:
        raise Damaged("the checksum of an index block does not match its bytes")
    block = data[offset:end]
    if kind == 1:
        block = _unsnappy(block)
    elif kind != 0:
        raise Damaged(f"compression of kind {kind}")
    return _records(block)


def _records(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = struct.unpack("<I", block[-4:])[0] if len(block) >= 4 else 0
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise Damaged("an index block without its list of restarts")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or shared + fresh > _MAX_KEY_BYTES or at + fresh + length > end:
            raise Damaged("an index record outside of its block")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + length
        yield key, block[at - length : at]


def _unsnappy(data: bytes) -> bytes:
    """Undo Snappy's block format (google/snappy, format_description.txt); merged checkpoints have it."""
    length, at = varint(data, 0)
    if length > _MAX_SNAPPY_RATIO * len(data):
        raise Damaged("a compressed block of impossible length")
    out = bytearray()
    while at < len(data) and len(out) <= length:
        tag, at = data[at], at + 1
        if tag & 3 == 0:
            size = (tag >> 2) + 1
            if size > 60:
                extra = size - 60
                size, at = int.from_bytes(data[at : at + extra], "little") + 1, at + extra
            out += data[at : at + size]
            at += size
            continue
        width = (0, 1, 2, 4)[tag & 3]
        back, at = int.from_bytes(data[at : at + width], "little"), at + width
        size = (tag >> 2) + 1
        if width == 1:
            size, back = (tag >> 2 & 7) + 4, back | tag >> 5 << 8
        if not 1 <= back <= len(out):
            raise Damaged("a compressed block that refers to before its start")
        for _ in range(size):  # byte by byte: a copy may read what it writes
            out.append(out[-back])
    if len(out) != length:
        raise Damaged("a compressed block of the wrong length")
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one variable is kept. ``dtype`` is TensorFlow's number of the element type, ``crc`` the masked
    CRC-32C of the bytes; ``sliced`` says that the variable is spread over several partial entries."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its index is read and checked, its variables are read one by one. ``prefix`` is
    the common beginning of its files, ``entries`` has every variable by name."""

    prefix: Path
    shards: int
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read the index, given the checkpoint's folder, its ``.index`` file, or its prefix. `ModelError` if
        there is nothing, not a V2 checkpoint, damaged, cut short, or a shard is missing."""
        prefix = _find_prefix(Path(path))
        index = Path(f"{prefix}.index")
        with _naming(index):
            table = dict(read_table(_read_limited(index, _MAX_INDEX_BYTES)))
            if b"" not in table:
                raise Damaged("an index without a header")
            header = _message(table[b""])
            shards = _last(header, 1, 0)
            if not 1 <= shards <= _MAX_SHARDS:
                raise Damaged(f"{shards} shards")
            if _last(header, 2, 0) != 0:
                raise Damaged("big-endian numbers, which no current machine writes")
            entries = {key.decode("utf-8"): _entry(value) for key, value in table.items() if key}
        self = cls(prefix, shards, entries)
        self._check_shards()
        return self

    def _shard_path(self, shard: int) -> Path:
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self.shards:05d}")

    def read(self, name: str) -> NDArray[Any]:
        """Read one variable, in the stored shape and element type, and check its CRC. `ModelError` if there
        is no such variable, an element type other than numbers, or damaged bytes."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(
                f"the checkpoint {self.prefix} has no variable {name}",
                wanted=name,
                got=f"{len(self.entries)} other variables",
                fix="use a checkpoint of the reference network",
            )
        path = self._shard_path(entry.shard)
        with _naming(path), path.open("rb") as file:
            dtype = _dtype(name, entry)
            file.seek(entry.offset)
            raw = file.read(entry.size)
            if len(raw) != entry.size:
                raise Damaged(f"the file ends inside of {name}")
            if masked_crc(raw) != entry.crc:
                raise Damaged(f"the checksum of {name} does not match its bytes")
            return np.frombuffer(raw, dtype).reshape(entry.shape)

    def _check_shards(self) -> None:
        for shard in range(self.shards):
            path = self._shard_path(shard)
            if not path.is_file():
                wanted = f"{self.shards} data files beside {self.prefix.name}.index"
                raise ModelError(
                    f"a part of the checkpoint is missing: {path.name}",
                    wanted=wanted,
                    got=f"no {path}",
                    fix=_FIX,
                )
            end = max((e.offset + e.size for e in self.entries.values() if e.shard == shard), default=0)
            size = path.stat().st_size
            if size < end:
                wanted = f"at least {end} bytes"
                raise ModelError(
                    f"the checkpoint file {path} is cut short", wanted=wanted, got=f"{size} bytes", fix=_FIX
                )
        lost = next((name for name, e in self.entries.items() if e.shard >= self.shards), None)
        if lost is not None:
            raise _foreign(self.prefix, f"{lost} is said to be in data file {self.entries[lost].shard}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in whatever goes wrong while its bytes are read."""
    try:
        yield
    except (Damaged, UnicodeDecodeError) as error:
        raise _foreign(path, str(error)) from error
    except OSError as error:
        raise ModelError(
            f"the checkpoint file {path} cannot be read",
            wanted="a readable file",
            got=str(error),
            fix="check that the file exists and may be read",
        ) from error


def _foreign(path: Path, got: str) -> ModelError:
    return ModelError(
        f"the checkpoint file {path} is damaged, or is not part of a TensorFlow V2 checkpoint",
        wanted="an intact TensorFlow V2 checkpoint (.index and .data files)",
        got=got,
        fix=_FIX,
    )


def _find_prefix(path: Path) -> Path:
    if path.is_dir():
        return _find_in_folder(path)
    if path.name.endswith(".index") and path.is_file():
        return path.with_name(path.name.removesuffix(".index"))
    if Path(f"{path}.index").is_file():
        return path
    got = "a file of another kind" if path.exists() else "nothing there"
    raise ModelError(
        f"there is no TensorFlow V2 checkpoint at {path}",
        wanted="a folder with NAME.index and NAME.data-00000-of-00001, or the path to NAME.index",
        got=got,
        fix="unpack the archive first; V1 checkpoints (one file without .index) are not read",
    )


def _find_in_folder(folder: Path) -> Path:
    found = sorted(p.name.removesuffix(".index") for p in folder.glob("*.index"))
    state = folder / "checkpoint"
    if state.is_file():
        with _naming(state):
            text = _read_limited(state, _MAX_STATE_BYTES).decode("utf-8")
            match = re.search(r'^model_checkpoint_path:\s*"([^"\n]+)"', text, re.MULTILINE)
        # The recorded path is the writer's; only its last part is true after a move to another folder.
        latest = re.split(r"[/\\]", match[1])[-1] if match else ""
        if latest in found:
            return folder / latest
    if len(found) == 1:
        return folder / found[0]
    raise ModelError(
        f"there is no single TensorFlow V2 checkpoint in {folder}",
        wanted="one NAME.index, or a file `checkpoint` that names one",
        got=", ".join(found[:5]) or "no .index file",
        fix="give the path to the .index file itself" if found else "give the folder that holds NAME.index",
    )


def _read_limited(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Damaged(f"a file of more than {limit} bytes")
    return data


def _message(data: bytes) -> dict[int, list[int | bytes]]:
    """Fields of a protobuf message by number; repeated ones in order."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(tag & 7)
            if tag & 7 == 2:
                size, at = varint(data, at)
            if size is None or at + size > len(data):
                raise Damaged("a record that does not follow its format")
            value, at = data[at : at + size], at + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _last(fields: Mapping[int, list[int | bytes]], number: int, default: _Value) -> _Value:
    """The last value of a field, which must be of the default's type."""
    value = fields.get(number, [default])[-1]
    if not isinstance(value, type(default)):
        raise Damaged("a record that does not follow its format")
    return value


def _entry(value: bytes) -> Entry:
    fields = _message(value)
    sides = [
        _last(_message(side), 1, 0)
        for side in _message(_last(fields, 2, b"")).get(2, [])
        if isinstance(side, bytes)
    ]
    size, offset = _last(fields, 5, 0), _last(fields, 4, 0)
    if len(sides) > _MAX_AXES or any(side > _MAX_SIDE for side in (*sides, size, offset)):
        raise Damaged("a variable of impossible shape")
    crc = int.from_bytes(_last(fields, 6, b""), "little")
    return Entry(_last(fields, 1, 0), tuple(sides), _last(fields, 3, 0), offset, size, crc, 7 in fields)


def _dtype(name: str, entry: Entry) -> np.dtype[Any]:
    if entry.dtype not in _DTYPES:
        raise Damaged(f"{name} of TensorFlow type {entry.dtype}, which is not a plain number")
    if entry.sliced:
        raise Damaged(f"{name} stored in slices; save the checkpoint without variable partitioning")
    dtype = np.dtype(_DTYPES[entry.dtype])
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise Damaged(f"{name} of shape {entry.shape} in {entry.size} bytes")
    return dtype
