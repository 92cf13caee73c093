from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import StorageError
from acq_isl.rules import Decision, SetPreset
from acq_isl.rules.measurements import ObjectCount
from acq_isl.stack import StackKey
from acq_isl.storage.decision_log import Ledger, read, verify


class Clock:
    """Starts at 1000 s and moves one second per look."""

    def __init__(self) -> None:
        self.now = 999.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished ledger: two decisions, one dose, closed."""
    path = tmp_path / "decisions.jsonl"
    with Ledger(path, Clock()) as ledger:
        ledger.write("decision", what="image")
        ledger.write("decision", what="nothing")
        ledger.dose("A1_000", "DAPI", 50.0, slices=3)
    return path


def test_a_finished_ledger_holds(path: Path) -> None:
    verified = verify(path)
    assert (verified.lines, verified.closed) == (4, True)
    lines = read(path)
    assert [line["kind"] for line in lines] == ["decision", "decision", "dose", "closed"]
    assert lines[0]["time"] == "1970-01-01T00:16:40.000+00:00"
    assert lines[1]["previous"] == lines[0]["sha256"]
    assert verified.seal == lines[-1]["sha256"]


def edit(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"nothing", b"somthng"), *lines[2:]]


def edit_last(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1].replace(b"in order", b"in chaos")]


def edit_and_reseal(lines: list[bytes]) -> list[bytes]:
    """Copying the seal of another line does not help."""
    line = json.loads(lines[1])
    line["sha256"] = json.loads(lines[2])["sha256"]
    return [lines[0], json.dumps(line).encode() + b"\n", *lines[2:]]


@pytest.mark.parametrize(
    "tamper",
    [
        edit,
        edit_last,
        edit_and_reseal,
        lambda lines: lines[1:],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], *lines],
        lambda lines: [*lines, b'{"kind": "decision"}\n'],
        lambda lines: [*lines, b"[1]\n"],
        lambda lines: [*lines[:-1], lines[-1][:-9]],
        lambda lines: [lines[0], b"\n", *lines[1:]],
        lambda lines: [b"\xff\xfe", *lines],
    ],
)
def test_tampering_is_found(path: Path, tamper: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StorageError, match="does not hold from line"):
        verify(path)


def test_lines_cut_off_the_end_show_as_not_closed(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path).closed is False


ENTRIES = st.dictionaries(
    st.text(min_size=1).filter(lambda k: k not in {"n", "time", "kind", "previous", "sha256", "self"}),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats(), max_size=3),
    max_size=4,
)


@given(st.lists(ENTRIES, max_size=3))
def test_whatever_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "decisions.jsonl"
    with Ledger(path) as ledger:
        written = [ledger.write("any", **record) for record in records]
    assert list(read(path)[:-1]) == written


def test_records_of_the_program_are_written_as_json(tmp_path: Path) -> None:
    decision = Decision(
        StackKey(0, "A1_000", "Phase"),
        "bright",
        "set",
        "why",
        math.nan,
        3.0,
        SetPreset(group="C", preset="P"),
    )
    with Ledger(tmp_path / "d.jsonl") as ledger:
        line = ledger.write(
            "decision", decision=decision, rule=ObjectCount(label="nuclei"), n_px=np.int64(3), xs=np.arange(2)
        )
    assert line["decision"]["key"] == {"time": 0, "position": "A1_000", "channel": "Phase"}
    assert line["decision"]["value"] is None
    assert line["decision"]["action"] == {"kind": "set_preset", "group": "C", "preset": "P"}
    assert (line["rule"]["label"], line["n_px"], line["xs"]) == ("nuclei", 3, [0, 1])
    assert read(tmp_path / "d.jsonl")[0] == line


def test_the_chain_cannot_be_overwritten_by_an_entry(tmp_path: Path) -> None:
    with Ledger(tmp_path / "d.jsonl") as ledger, pytest.raises(ValueError, match="previous"):
        ledger.write("any", previous="0" * 64)
    assert verify(tmp_path / "d.jsonl").lines == 1


def test_dose_is_summed_by_position_and_channel(tmp_path: Path) -> None:
    with Ledger(tmp_path / "d.jsonl") as ledger:
        ledger.dose("a", "Phase", 10.0, slices=13)
        ledger.dose("a", "DAPI", 50.0)
        ledger.dose("b", "Phase", 10.0)
        ledger.dose("a", "DAPI", 25.0)
        assert ledger.dose_ms == {"a": {"Phase": 130.0, "DAPI": 75.0}, "b": {"Phase": 10.0}}
        with pytest.raises(ValueError, match="not negative"):
            ledger.dose("a", "DAPI", math.nan)
    assert [line.get("sum_ms") for line in read(tmp_path / "d.jsonl")] == [130.0, 50.0, 10.0, 75.0, None]


def test_an_existing_ledger_is_continued_with_its_dose(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.dose("A1_000", "DAPI", 50.0)
        assert ledger.dose_ms == {"A1_000": {"DAPI": 200.0}}
    assert verify(path).lines == 6


def test_a_damaged_ledger_is_not_continued(path: Path) -> None:
    before = path.read_bytes()[:-5]
    path.write_bytes(before)
    with pytest.raises(StorageError, match="new folder"), Ledger(path):
        pass
    assert path.read_bytes() == before


def test_every_line_is_on_disk_when_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append((tmp_path / "d.jsonl").read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    with Ledger(tmp_path / "d.jsonl") as ledger:
        ledger.write("decision", what="image")
        assert b"image" in synced[-1]


def test_a_run_that_ends_badly_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path / "d.jsonl") as ledger:
        ledger.write("decision", what="image")
        raise KeyboardInterrupt
    assert read(tmp_path / "d.jsonl")[-1]["ended"] == "by KeyboardInterrupt"


def test_a_full_disk_is_an_error_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger(path) as ledger:
        ledger.write("decision", what="first")
        with monkeypatch.context() as patched:

            def full(_: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patched.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match="No space left"):
                ledger.write("decision", what="second")
        ledger.write("decision", what="third")
    assert [line.get("what") for line in read(path)] == ["first", "third", None]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="output folder"), Ledger(tmp_path / "file" / "d.jsonl"):
        pass


def test_a_ledger_that_is_not_open_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not open"):
        Ledger(tmp_path / "d.jsonl").write("decision")
    with pytest.raises(StorageError, match="cannot be read"):
        verify(tmp_path / "nothing.jsonl")


def test_threads_share_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with Ledger(path) as ledger:
        threads = [
            threading.Thread(target=lambda: [ledger.dose("a", "DAPI", 1.0) for _ in range(20)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert ledger.dose_ms == {"a": {"DAPI": 80.0}}
    assert verify(path).lines == 81
