"""The wire: what is sent comes back equal; nothing else gets in."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from acq_isl.errors import WireError
from acq_isl.stack import Distance, Prediction, Slice, StackInfo, StackKey, StageTimes
from acq_isl.stream.codec import decode, encode, prediction_of, result_of, slice_frames, slice_of
from acq_isl.stream.messages import (
    MAX_HEADER_BYTES,
    Alive,
    Beat,
    Bye,
    Cancel,
    Done,
    Expired,
    Failed,
    Hello,
    Loading,
    MemoryOffer,
    MemoryRef,
    Message,
    Models,
    NotSwapped,
    Offer,
    Refused,
    Result,
    SliceSent,
    Swap,
    Swapped,
    Wanted,
    Welcome,
    Withdraw,
    Withdrawn,
)

INFO = StackInfo(StackKey(3, "A1_003", "Phase"), (0.0, 1.5), (4, 5), 0.3, 10.0, -20.0, 8.0, "DIC", "dark")
SLICE = Slice(INFO, 1, np.arange(20, dtype=np.uint16).reshape(4, 5), 1.75e9)
PREDICTION = Prediction(
    info=INFO,
    labels=("nuclei", "axons"),
    mean=np.random.default_rng(0).random((2, 4, 5), np.float32),
    spread=np.random.default_rng(1).random((2, 4, 5), np.float32),
    model_sha256="ab" * 32,
    model_name="test 1",
    engine="fake",
    warnings=("resampled",),
    border_px=3,
    times=StageTimes(wait_ms=1.0, infer_ms=2.5, decode_ms=0.5),
    model="mine",
    distances=(Distance("features", 3.5, 4.0),),
)
OFFER = Offer(name="a", manifest="{}", model_sha256="ab", engine="fake")
HEADERS: list[Message] = [
    Hello(session="0f" * 16, attempt=7, ring=MemoryOffer(name="/proc/1/fd/3", nbytes=4096)),
    Hello(session="0f" * 16, attempt=0),
    Welcome(attempt=7, credit=2, models=(OFFER,), held=(1, 4)),
    Models(models=(OFFER, OFFER)),
    SliceSent(stack=5, info=INFO, z_index=0, captured_s=1.0, ring=MemoryRef(offset=4096, generation=9)),
    SliceSent(
        stack=5,
        info=INFO,
        z_index=0,
        captured_s=1.0,
        ring=MemoryRef(offset=4096, generation=9),
        wanted=Wanted(models=("a", "b"), work="live", deadline_ms=250.0),
        left_ms=20.5,
    ),
    Refused(stack=5, model="a", reason="too few planes", fix="more planes"),
    Failed(stack=5, reason="no memory"),
    Expired(stack=5, model="a"),
    Done(stack=5, model="a"),
    Cancel(stack=5),
    Withdraw(stack=5),
    Withdrawn(stack=5),
    Swap(model="/models/new.onnx", name="a"),
    Loading(),
    Swapped(old=OFFER, new=OFFER, changes=("labels: a -> b",)),
    NotSwapped(error="model", reason="damaged", wanted="a model", got="a cat", fix="export it again"),
    Beat(sent_s=1.0),
    Alive(sent_s=1.0, server_s=2.0),
    Bye(reason="stopped"),
]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
floats = st.floats(allow_nan=False, allow_infinity=False)
infos = st.builds(
    StackInfo,
    st.builds(StackKey, st.integers(0, 10**6), texts, texts),
    st.lists(floats, min_size=1, max_size=20).map(tuple),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.floats(),  # NaN: the pixel size is not known, which the manifest's check explains
    floats,
    floats,
    floats,
    st.sampled_from(["phase contrast", "brightfield", "DIC", "fluorescence", "unknown"]),
    st.sampled_from(["dark", "bright", "unknown"]),
)


def header(**changes: Any) -> bytes:
    """The JSON of a slice that lies in the ring, with fields changed or (None) removed."""
    fields = json.loads(bytes(slice_frames(5, SLICE, MemoryRef(offset=4096, generation=1))[0]))
    fields |= changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def info_json(**changes: Any) -> dict[str, Any]:
    return dict(json.loads(header())["info"]) | changes


@pytest.mark.parametrize("message", HEADERS, ids=lambda message: message.type)
def test_a_header_comes_back_equal(message: Message) -> None:
    assert decode(encode(message)) == (message, ())


@given(infos, st.data())
def test_a_slice_comes_back_equal(info: StackInfo, data: st.DataObject) -> None:
    pixels = data.draw(hnp.arrays(np.uint16, info.shape))
    z_index = data.draw(st.integers(0, info.planes - 1))
    message, buffers = decode(slice_frames(9, Slice(info, z_index, pixels, 12.5)))
    assert isinstance(message, SliceSent)
    back = slice_of(message, buffers)
    assert repr(back.info) == repr(info)  # repr: NaN is not equal to itself
    assert (message.stack, back.z_index, back.captured_s) == (9, z_index, 12.5)
    assert np.array_equal(back.pixels, pixels)
    assert not back.pixels.flags.writeable


def test_a_slice_is_viewed_and_not_copied() -> None:
    frames = slice_frames(0, SLICE)
    assert np.shares_memory(np.frombuffer(frames[1], np.uint16), SLICE.pixels)


def test_a_prediction_comes_back_bit_for_bit() -> None:
    message, buffers = decode(result_of(5, PREDICTION, 1.75e9))
    assert isinstance(message, Result)
    back = prediction_of(message, buffers, INFO)
    assert message.complete_s == 1.75e9
    for field in dataclasses.fields(Prediction):
        if field.name not in ("mean", "spread"):
            assert getattr(back, field.name) == getattr(PREDICTION, field.name)
    assert back.mean.tobytes() == PREDICTION.mean.tobytes()
    assert back.spread.tobytes() == PREDICTION.spread.tobytes()


def test_a_non_contiguous_image_is_sent_in_order() -> None:
    flipped = SLICE.pixels[::-1, ::-1]
    message, buffers = decode(slice_frames(0, Slice(INFO, 0, flipped, 0.0)))
    assert isinstance(message, SliceSent)
    assert np.array_equal(slice_of(message, buffers).pixels, flipped)


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"", "header"),
        (b"\x80\x04K\x01.", "header"),  # a pickle
        (b"[" * 100_000, "header"),
        (b'{"type": "HELLO", "version": 1, "hello": "?"}', "version"),
        (header(version=1), "version"),
        (header(version=True), "version"),
        (header(type="EXEC"), "EXEC"),
        (header(type=...), "type"),
        (header(stack=-1), "stack"),
        (header(stack="5"), "stack"),
        (header(stack=1e300), "stack"),
        (header(stack=1 << 80), "stack"),
        (header(extra=1), "extra"),
        (header(captured_s=...), "captured_s"),
        (header(captured_s=float("nan")), "captured_s"),
        (header(z_index=2), "outside of its stack"),
        (header(z_index=-1), "z_index"),
        (header(ring={"offset": -4096, "generation": 1}), "offset"),
        (header(ring={"offset": 4096, "generation": 0}), "generation"),
        (header(info=info_json(shape=[-4, 5])), "size"),
        (header(info=info_json(shape=[0, 5])), "size"),
        (header(info=info_json(shape=[1 << 40, 1 << 40])), "size"),
        (header(info=info_json(shape=[4, 5, 6])), "shape"),
        (header(info=info_json(shape=[4.5, 5])), "shape"),
        (header(info=info_json(shape=[16384, 16384], z_um=[0.0] * 1024)), "size"),
        (header(info=info_json(z_um=[])), "size"),
        (header(info=info_json(z_um=[0.0, float("inf")])), "z that is not a number"),
        (header(info=info_json(modality="x-ray")), "modality"),
        (header(info=info_json(key={"time": 0, "position": "x" * 300, "channel": ""})), "names"),
        (header(info=info_json(__class__="os.system")), "__class__"),
    ],
)
def test_a_wrong_header_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode([raw])


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"x" * (MAX_HEADER_BYTES + 1)],
        slice_frames(0, SLICE)[:1],
        [*slice_frames(0, SLICE), b""],
        [slice_frames(0, SLICE)[0], bytes(39)],
        [slice_frames(0, SLICE)[0], bytes(41)],
        [*encode(Done(stack=1)), b"payload"],
        result_of(0, PREDICTION, 0.0)[:2],
        [header(), bytes(40)],  # in the ring and as payload
    ],
)
def test_missing_extra_and_wrong_buffers_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5), np.int16),
        np.zeros((4, 5), np.float32),
        np.zeros((5, 4), np.uint16),
        np.zeros((4, 5, 1), np.uint16),
    ],
)
def test_a_slice_of_another_kind_is_not_sent(pixels: Any) -> None:
    with pytest.raises(WireError, match="not what was announced"):
        slice_frames(0, Slice(INFO, 0, pixels, 0.0))


@pytest.mark.parametrize("position", ["x" * 257, "\ud800"])
def test_a_name_that_cannot_travel_is_not_sent(position: str) -> None:
    info = StackInfo(StackKey(0, position, "Phase"), (0.0,), (4, 5), 0.3)
    with pytest.raises(WireError):
        slice_frames(0, Slice(info, 0, SLICE.pixels, 0.0))


def test_a_prediction_whose_arrays_contradict_it_is_not_sent() -> None:
    half = Prediction(
        INFO, ("nuclei",), PREDICTION.mean[:1].astype(np.float16), PREDICTION.spread[:1], "", "", ""
    )
    with pytest.raises(WireError, match="float32"):
        result_of(0, half, 0.0)  # type: ignore[arg-type, unused-ignore]


def test_a_prediction_of_another_shape_is_not_taken() -> None:
    message, buffers = decode(result_of(0, PREDICTION, 0.0))
    other = StackInfo(INFO.key, INFO.z_um, (5, 4), 0.3)
    assert isinstance(message, Result)
    with pytest.raises(WireError, match="shape"):
        prediction_of(message, buffers, other)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_bytes_are_refused_with_a_wire_error(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames)


@settings(max_examples=300)
@given(st.sampled_from([encode(m)[0] for m in HEADERS] + slice_frames(0, SLICE)[:1]), st.data())
def test_a_damaged_header_is_refused_or_still_valid(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        message, buffers = decode([bytes(damaged)])
    except WireError:
        return
    assert decode(encode(message)) == (message, buffers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([json.loads(bytes(encode(m)[0])) for m in HEADERS]), st.data())
def test_a_field_of_any_other_value_is_refused_or_valid(fields: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(fields)))
    changed = json.dumps(fields | {name: data.draw(json_values)}).encode("utf-8", "surrogatepass")
    try:
        message, _ = decode([changed])
    except WireError:
        return
    assert repr(decode(encode(message))[0]) == repr(message)


def test_what_version_0_1_does_not_know_is_not_sent_without_need() -> None:
    """Its headers are strict: one key more, and every prediction would be lost to it."""
    timed = dataclasses.replace(PREDICTION, times=dataclasses.replace(PREDICTION.times, turn_ms=3.0))
    header = bytes(result_of(0, timed, 0.0)[0])
    assert b"counting" not in header and b"turn_ms" not in header and b"infer_ms" in header


def test_a_peer_cannot_steer_the_terminal_or_fake_lines_of_the_log() -> None:
    nasty = {"type": "BYE", "version": 2, "\x1b[2J\n12:00 all is well": 1}
    with pytest.raises(WireError) as refused:
        decode([json.dumps(nasty).encode()])
    assert str(refused.value).isprintable() and "all is well" in str(refused.value)
