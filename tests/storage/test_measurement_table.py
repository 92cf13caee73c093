"""The table of a run: whole lines, whatever ends the program."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl.errors import StorageError
from acq_isl.storage.measurement_table import FILE, MeasurementTable, TableRow, read_table

ROW = TableRow(
    "predicted", 3, "A1_2", "A1", "Phase", 1.5, -2.0, 0.0, 61.25, "count", 41.0, 3.5, "objects", "a,b"
)


def test_a_row_reads_back_and_opens_as_any_csv(tmp_path: Path) -> None:
    with MeasurementTable(tmp_path / FILE) as table:
        table.add([ROW, TableRow("time point", 4, note='he said "late"\nand went')])
    first, second = read_table(tmp_path / FILE)
    assert first == ROW and second.note == 'he said "late" and went'
    with (tmp_path / FILE).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["value"] == "41" and lines[1]["value"] == ""


def test_what_is_there_is_continued_and_half_a_line_goes(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for _ in range(2):
        with MeasurementTable(path) as table:
            table.add([ROW])
    whole = path.read_bytes()
    path.write_bytes(whole + b"predicted,9,A1")
    assert read_table(path) == (ROW, ROW)
    with MeasurementTable(path) as table:
        table.add([ROW])
    assert read_table(path) == (ROW, ROW, ROW) and path.read_bytes().startswith(whole)


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_no_bytes_make_reading_fail(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("table") / FILE
    path.write_bytes(content)
    assert all(isinstance(row, TableRow) for row in read_table(path))


def test_a_killed_program_leaves_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from acq_isl.storage.measurement_table import MeasurementTable, TableRow\n"
        "with MeasurementTable(Path(sys.argv[1])) as table:\n"
        "    for n in range(10**9):\n"
        "        table.add([TableRow('predicted', n)])\n"
        "        if n == 50: print(flush=True)\n"
    )
    path = tmp_path / FILE
    program = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert program.stdout is not None and program.stdout.readline()
    program.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    program.wait()
    program.stdout.close()
    found = [row.time_point for row in read_table(path)]
    assert found == list(range(len(found))) and len(found) > 50


def test_a_folder_that_is_gone_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="measurements cannot be written"):
        MeasurementTable(tmp_path / "gone" / FILE).__enter__()
