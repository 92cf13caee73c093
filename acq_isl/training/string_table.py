"""Sorted string tables: the file format of LevelDB (its ``table_format.md``), TensorFlow's for indexes.

Knows nothing of files or of what the values mean. Every block's CRC is checked, and nothing is allocated that
is much longer than the bytes at hand, whatever these say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import google_crc32c

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # one byte of compression, four of CRC
_MAX_KEY_BYTES = 4096
_MAX_SNAPPY_RATIO = 32  # a Snappy copy makes at most 64 bytes of 3


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
    """Keys and values of a sorted string table, in order.

    Raises
    ------
    Damaged
        The bytes do not follow the format, or a checksum does not match.
    """
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
    """Undo Snappy's block format (google/snappy, format_description.txt)."""
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
