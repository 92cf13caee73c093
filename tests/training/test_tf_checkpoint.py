"""The reader of TensorFlow checkpoints: what it reads, and what it says of what it cannot read."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acq_isl.errors import ModelError
from acq_isl.training.reference.tf_checkpoint import Checkpoint, Damaged, masked_crc, read_table

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden checkpoint at {GOLDEN}")
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(array: np.ndarray, offset: int, shard: int = 0, *, dtype: int = 0, extra: bytes = b"") -> bytes:
    raw = array.tobytes()
    shape = b"".join(field(2, field(1, side)) for side in array.shape)
    return (
        field(1, dtype or DTYPES[str(array.dtype)])
        + field(2, shape)
        + field(3, shard)
        + field(4, offset)
        + field(5, len(raw))
        + varint(6 << 3 | 5)
        + struct.pack("<I", masked_crc(raw))
        + extra
    )


def snappy(data: bytes) -> bytes:
    """A slow greedy compressor: literals of one byte, and copies of all three kinds in turn."""
    out, at, copies = varint(len(data)), 0, 0
    while at < len(data):
        size, back = max(
            ((_match(data, at, back), back) for back in range(1, min(at, 300) + 1)), default=(0, 0)
        )
        if size < 4:
            out += b"\0" + data[at : at + 1]
            at += 1
            continue
        kind, copies = copies % 3 + 1, copies + 1
        if kind == 1:
            size = min(size, 11)
            out += bytes([back >> 8 << 5 | (size - 4) << 2 | 1, back & 255])
        else:
            out += bytes([(size - 1) << 2 | kind]) + back.to_bytes(2 * kind - 2, "little")
        at += size
    return out


def _match(data: bytes, at: int, back: int) -> int:
    size = 0
    while size < 64 and at + size < len(data) and data[at + size] == data[at + size - back]:
        size += 1
    return size


def table(records: Mapping[bytes, bytes], compress: Callable[[bytes], bytes] | None = None) -> bytes:
    def block(pairs: Mapping[bytes, bytes], packed: bool = False) -> bytes:
        body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs.items())
        body += struct.pack("<II", 0, 1)
        kind = b"\0"
        if packed and compress is not None:
            body, kind = compress(body), b"\1"
        return body + kind + struct.pack("<I", masked_crc(body + kind))

    data = block(dict(sorted(records.items())), packed=True)
    handle = varint(0) + varint(len(data) - 5)
    index = block({b"\xff": handle})
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write(folder: Path, variables: Mapping[str, np.ndarray], shards: int = 1, name: str = "model") -> Path:
    """A checkpoint as TensorFlow writes it; variables go round the shards."""
    folder.mkdir(exist_ok=True)
    data = [b""] * shards
    records = {b"": field(1, shards) + field(3, field(1, 1))}
    for index, (variable, array) in enumerate(sorted(variables.items())):
        shard = index % shards
        records[variable.encode()] = entry(array, len(data[shard]), shard)
        data[shard] += array.tobytes()
    (folder / f"{name}.index").write_bytes(table(records))
    for shard, raw in enumerate(data):
        (folder / f"{name}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)
    return folder


VARIABLES = {
    "a/weights": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.array([1.5, -2], np.float64),
    "c": np.zeros((0, 3), np.float32),
    "global_step": np.array(984658, np.int64),
    "half": np.array([[0.25]], np.float16),
}


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("given_as", ["", "model", "model.index"])
def test_reads_what_was_written(tmp_path: Path, shards: int, given_as: str) -> None:
    write(tmp_path / "c", VARIABLES, shards)
    checkpoint = Checkpoint.open(tmp_path / "c" / given_as)
    assert set(checkpoint.entries) == set(VARIABLES)
    for name, array in VARIABLES.items():
        got = checkpoint.read(name)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_the_state_file_chooses_and_its_folder_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path, {"x": np.float32([1])}, name="step-1")
    write(tmp_path, {"x": np.float32([2])}, name="step-2")
    state = 'model_checkpoint_path: "/cns/elsewhere/step-2"\nall_model_checkpoint_paths: "step-1"\n'
    (tmp_path / "checkpoint").write_text(state)
    assert Checkpoint.open(tmp_path).read("x") == 2
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(ModelError, match=r"no single TensorFlow V2 checkpoint.*step-1, step-2"):
        Checkpoint.open(tmp_path)


PIECES = st.lists(st.sampled_from([b"abcab", b"\0" * 30, b"xyz"]), max_size=9).map(b"".join)


@settings(deadline=None)
@given(records=st.dictionaries(st.binary(max_size=8), PIECES))
def test_compressed_blocks_are_read(records: dict[bytes, bytes]) -> None:
    assert dict(read_table(table(records, snappy))) == records


def test_long_literals_are_read() -> None:
    def one_literal(data: bytes) -> bytes:
        return varint(len(data)) + bytes([61 << 2]) + struct.pack("<H", len(data) - 1) + data

    records = {b"k": bytes(range(256)) * 5}
    assert dict(read_table(table(records, one_literal))) == records


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def _cut(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])


INDEX, DATA = "model.index", "model.data-00000-of-00001"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "index cut short": (lambda p: _cut(p / INDEX, 100), "without the end mark"),
    "index empty": (lambda p: _cut(p / INDEX, 0), "without the end mark"),
    "index flipped": (lambda p: _flip(p / INDEX, 20), "checksum of an index block"),
    "data cut short": (lambda p: _cut(p / DATA, 50), "cut short"),
    "data flipped": (lambda p: _flip(p / DATA, 5), "checksum of a/weights"),
    "data missing": (lambda p: (p / DATA).unlink(), r"missing: model\.data-00000-of-00001"),
    "index missing": (lambda p: (p / INDEX).unlink(), "no .index file"),
    "a zip file": (
        lambda p: (p / INDEX).write_bytes(b"PK\3\4" * 50),
        "not part of a TensorFlow V2",
    ),
    "nothing": (shutil.rmtree, "nothing there"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_what_to_do(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    folder = write(tmp_path / "c", VARIABLES)
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        _read_all(folder)
    assert caught.value.wanted and caught.value.got and caught.value.fix
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (entry(np.zeros(2, np.float32), 0, dtype=7), "type 7, which is not a plain number"),
        (entry(np.zeros(2, np.float32), 0, dtype=2), "of shape \\(2,\\) in 8 bytes"),
        (entry(np.zeros(2, np.float32), 0, extra=field(7, b"")), "stored in slices"),
        (entry(np.zeros(2, np.float32), 0, shard=3), "in data file 3"),
        (entry(np.zeros(2, np.float32), 2**60), "impossible shape"),
        (entry(np.zeros(2, np.float32), 2**39), "cut short"),
        (field(2, 5), "does not follow its format"),
        (b"\xff" * 12, "number without an end"),
        (b"\x0a\x7f", "does not follow its format"),
    ],
)
def test_records_that_lie_are_refused(tmp_path: Path, record: bytes, message: str) -> None:
    write(tmp_path, {"x": np.zeros(2, np.float32)})
    (tmp_path / INDEX).write_bytes(table({b"": field(1, 1), b"x": record}))
    with pytest.raises(ModelError, match=message):
        _read_all(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [(field(1, 0), "0 shards"), (field(1, 2**40), "shards"), (field(1, 1) + field(2, 1), "big-endian")],
)
def test_headers_that_cannot_be_are_refused(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(table({b"": header}))
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(tmp_path)


def test_unknown_variable(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no variable z"):
        Checkpoint.open(write(tmp_path, VARIABLES)).read("z")


def _read_all(path: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.entries}


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 10**6),
    name=st.sampled_from([INDEX, DATA]),
)
def test_random_damage_is_found_or_harmless(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int | None, name: str
) -> None:
    folder = write(tmp_path / "c", VARIABLES)
    whole = _read_all(folder)
    data = bytearray((folder / name).read_bytes())
    for at, change in changes:
        data[at % len(data)] ^= change
    (folder / name).write_bytes(data[: None if cut is None else cut % len(data)])
    try:
        assert _read_all(folder) == whole  # only the footer's padding may change and not matter
    except ModelError as error:
        assert error.wanted and error.got and error.fix


@settings(deadline=None, max_examples=300)
@given(block=st.binary(max_size=200), kind=st.sampled_from([0, 1, 2]))
def test_any_block_with_a_true_checksum_is_read_or_refused(block: bytes, kind: int) -> None:
    data = block + bytes([kind]) + struct.pack("<I", masked_crc(block + bytes([kind])))
    body = b"\0\x01" + bytes([1 + len(varint(len(block)))]) + b"\xff\0" + varint(len(block))
    body += struct.pack("<II", 0, 1)
    index = body + b"\0" + struct.pack("<I", masked_crc(body + b"\0"))
    footer = b"\0\0" + varint(len(data)) + varint(len(body))
    try:
        records = list(
            read_table(data + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
        )
    except Damaged:
        return
    assert sum(len(key) + len(value) for key, value in records) <= 32 * 200 * 200


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.binary(max_size=60), header=st.binary(max_size=20))
def test_any_record_is_read_or_refused(tmp_path: Path, record: bytes, header: bytes) -> None:
    write(tmp_path, {"x": np.zeros(2, np.float32)})
    (tmp_path / INDEX).write_bytes(table({b"": field(1, 1) + header, b"x": record}))
    try:
        _read_all(tmp_path)
    except ModelError as error:
        assert error.wanted and error.got and error.fix


def test_the_checksum_is_crc32c() -> None:
    assert google_crc32c.value(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert masked_crc(b"") == 0xA282EAD8


@needs_golden
def test_golden_checkpoint_is_whole() -> None:
    checkpoint = Checkpoint.open(GOLDEN)
    values = {name: checkpoint.read(name) for name in checkpoint.entries}
    assert len(values) == 1252
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
    assert values["Conv/weights"].shape == (1, 1, 52, 16)


@needs_golden
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 52136), change=st.integers(1, 255))
def test_any_flipped_byte_of_the_golden_index_is_found(tmp_path: Path, at: int, change: int) -> None:
    data = bytearray((GOLDEN / "model.ckpt.index").read_bytes())
    data[at % len(data)] ^= change
    (tmp_path / "model.ckpt.index").write_bytes(data)
    shard = tmp_path / "model.ckpt.data-00000-of-00001"
    if not shard.exists():
        shutil.copyfile(GOLDEN / shard.name, shard)
    try:
        found = Checkpoint.open(tmp_path).entries
    except ModelError:
        return
    assert found == Checkpoint.open(GOLDEN).entries
