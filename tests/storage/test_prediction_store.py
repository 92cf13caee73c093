from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import StorageError
from acq_isl.stack import Distance, Prediction, StackInfo, StackKey, StageTimes
from acq_isl.storage import prediction_store as store
from acq_isl.storage.prediction_store import PredictionStore, find, load, stored

FIRST, SECOND = "A/1/A1000t0Phase", "A/1/A1001t0Phase"
COLORS = {"nuclei": "#56B4E9", "dendrites": "#E69F00"}


def prediction(
    position: str = "A1_000", *, x_um: float = 0.0, time_point: int = 0, seed: int = 1
) -> Prediction:
    rng = np.random.default_rng(seed)
    info = StackInfo(
        StackKey(time_point, position, "Phase"),
        (-1.5, 0.0, 1.5),
        (40, 60),
        0.3,
        x_um,
        50.0,
        10.0,
        "phase contrast",
        "dark",
    )
    return Prediction(
        info,
        ("nuclei", "dendrites"),
        rng.random((2, 40, 60), np.float32) * 1.2 - 0.1,
        rng.random((2, 40, 60), np.float32) * 0.2,
        "ab" * 32,
        "demo 1",
        "onnxruntime cpu fp32",
        ("resampled",),
        7,
        StageTimes(120.0, 2.0, 0.5, 430.0, 8.0),
        distances=(Distance("features", 2.5, 3.5),),
    )


def same(a: Prediction, b: Prediction) -> bool:
    arrays = np.array_equal(a.mean, b.mean) and np.array_equal(a.spread, b.spread)
    kept = [one.name for one in fields(Prediction) if one.name not in ("mean", "spread")]
    return arrays and all(getattr(a, name) == getattr(b, name) for name in kept)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two fields."""
    path = tmp_path / "predictions.ome.zarr"
    with PredictionStore(path, COLORS) as writer:
        writer.put(prediction())
        writer.put(prediction("A1_001", x_um=300.0, seed=2))
    return path


def test_a_store_is_valid_ome_zarr(path: Path) -> None:
    from yaozarrs import v05, validate_zarr_store

    validate_zarr_store(str(path))
    validate_zarr_store(str(path / FIRST))
    ome = store._read_json(path / "zarr.json")["attributes"]["ome"]
    plate = v05.PlateDef.model_validate(ome["plate"])
    assert [(well.path, plate.field_count) for well in plate.wells] == [("A/1", 2)]
    assert [scene["name"] for scene in ome["multiscales"]] == [
        "A1_000 t0 Phase (predicted)",
        "A1_001 t0 Phase (predicted)",
    ]
    assert ome["omero"]["channels"][0]["label"] == "nuclei (predicted)"


def test_what_was_put_reads_back(path: Path) -> None:
    assert stored(path) == (FIRST, SECOND)
    assert same(load(path, FIRST), prediction())
    assert same(load(path, SECOND), prediction("A1_001", x_um=300.0, seed=2))


def image(path: Path, name: str) -> Any:
    from yaozarrs import v05

    return v05.Image.model_validate(store._read_json(path / name / "zarr.json")["attributes"]["ome"])


def test_fields_lie_at_their_stage_coordinates(path: Path) -> None:
    """The middle of 60 columns of .3 um lies 8.85 um right of the middle of the first."""
    scales = image(path, SECOND).multiscales[0]
    assert [(axis.name, getattr(axis, "unit", None)) for axis in scales.axes] == [
        ("c", None),
        ("y", "micrometer"),
        ("x", "micrometer"),
    ]
    scale, translation = scales.datasets[0].coordinateTransformations
    assert scale.scale == [1.0, 0.3, 0.3]
    assert translation.translation == pytest.approx([0.0, 50.0 - 19.5 * 0.3, 300.0 - 29.5 * 0.3])


def test_every_channel_says_it_was_predicted_and_has_a_window(path: Path) -> None:
    channels = image(path, FIRST).omero.channels
    assert [channel.label for channel in channels] == [
        "nuclei (predicted)",
        "nuclei (predicted, doubt)",
        "dendrites (predicted)",
        "dendrites (predicted, doubt)",
    ]
    assert [channel.color for channel in channels][::2] == ["56B4E9", "E69F00"]
    assert [channel.active for channel in channels] == [True, False, True, False]
    assert [(channel.window.start, channel.window.end) for channel in channels][:2] == [
        (0.0, 1.0),
        (0.0, 0.5),
    ]


def test_a_colour_that_is_none_becomes_white(tmp_path: Path) -> None:
    with PredictionStore(tmp_path / "p.ome.zarr", {"nuclei": "blueish"}) as writer:
        writer.put(prediction())
    assert image(tmp_path / "p.ome.zarr", FIRST).omero.channels[0].color == "FFFFFF"


def test_provenance_is_kept_with_the_field(path: Path) -> None:
    kept = store._read_json(path / FIRST / "zarr.json")["attributes"]["acq_isl"]
    assert kept["predicted"] is True
    assert kept["model"] == {"name": "demo 1", "sha256": "ab" * 32}
    assert kept["engine"] == "onnxruntime cpu fp32"
    assert kept["latency_ms"]["infer_ms"] == 430.0
    assert kept["warnings"] == ["resampled"]
    assert kept["stack"]["modality"] == "phase contrast"
    assert "acq-isl" in kept["software"]


def test_names_are_fit_for_every_file_system_and_never_clash(tmp_path: Path) -> None:
    path = tmp_path / "p.ome.zarr"
    with PredictionStore(path) as writer:
        for position in ("A/1: x", "A/1: x", "a-1-x", "../up", "A1"):
            writer.put(prediction(position))
    assert stored(path) == (
        "A/1/A1xt0Phase",
        "A/1/A1xt0Phaseno2",
        "A/1/a1xt0Phaseno3",
        "A/1/upt0Phase",
        "A/1/A1t0Phase",
    )
    assert same(load(path, "A/1/A1xt0Phaseno2"), prediction("A/1: x"))
    assert find(path, StackKey(0, "A/1: x", "Phase")) == ("A/1/A1xt0Phase", "A/1/A1xt0Phaseno2")
    assert find(path, StackKey(0, "a-1-x", "Phase")) == ("A/1/a1xt0Phaseno3",)
    assert find(path, StackKey(0, "a-1-x", "Other")) == ()
    scenes = store._read_json(path / "zarr.json")["attributes"]["ome"]["multiscales"]
    assert len({scene["name"] for scene in scenes}) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_wells_and_time_points_are_those_of_the_positions(tmp_path: Path) -> None:
    """Rows and columns go by the plate, not by the order of letters and digits."""
    path = tmp_path / "p.ome.zarr"
    with PredictionStore(path) as writer:
        for position, time_point in (("AA1_0", 0), ("B10_0", 0), ("B2_0", 0), ("B2_0", 1), ("Q49_0", 0)):
            writer.put(prediction(position, time_point=time_point))
    plate = store._read_json(path / "zarr.json")["attributes"]["ome"]["plate"]
    assert [row["name"] for row in plate["rows"]] == ["A", "B", "AA"]
    assert [column["name"] for column in plate["columns"]] == ["1", "2", "10"]
    assert [well["path"] for well in plate["wells"]] == ["AA/1", "B/10", "B/2", "A/1"]
    assert [(run["id"], run["name"]) for run in plate["acquisitions"]] == [(0, "time 0"), (1, "time 1")]
    well = store._read_json(path / "B" / "2" / "zarr.json")["attributes"]["ome"]["well"]
    assert [(image["path"], image["acquisition"]) for image in well["images"]] == [
        ("B20t0Phase", 0),
        ("B20t1Phase", 1),
    ]


def test_a_store_of_version_0_1_is_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "p.ome.zarr"
    old = {"version": "0.5", "bioformats2raw.layout": 3}
    store._write_group(path, old)
    store.write_field(path / "A1_000_t0_Phase", prediction(), COLORS)
    store._write_group(path / "OME", {"version": "0.5", "series": ["A1_000_t0_Phase"]})
    assert find(path, prediction().info.key) == ("A1_000_t0_Phase",)
    with PredictionStore(path, COLORS, extend=True) as writer:
        writer.put(prediction("A1_001", seed=2))
    assert stored(path) == ("A1_000_t0_Phase", SECOND)
    assert same(load(path, "A1_000_t0_Phase"), prediction())
    assert same(load(path, SECOND), prediction("A1_001", seed=2))
    with PredictionStore(path, COLORS, extend=True):
        pass
    assert len(stored(path)) == 2


def test_what_was_not_listed_before_a_crash_is_found(path: Path) -> None:
    store._write_group(path, None)
    (path / "A" / "1" / "zarr.json").unlink()
    assert stored(path) == (FIRST, SECOND)
    with PredictionStore(path, extend=True) as writer:
        writer.put(prediction("A1_002"))
    assert len(stored(path)) == 3
    assert len(store._read_json(path / "A" / "1" / "zarr.json")["attributes"]["ome"]["well"]["images"]) == 3


def test_nothing_is_left_beside_the_store(path: Path) -> None:
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_store_without_predictions_opens(tmp_path: Path) -> None:
    with PredictionStore(tmp_path / "p.ome.zarr"):
        pass
    assert stored(tmp_path / "p.ome.zarr") == ()


def test_an_existing_store_is_never_overwritten(path: Path) -> None:
    with pytest.raises(StorageError, match="exists already"), PredictionStore(path):
        pass
    assert len(stored(path)) == 2


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StorageError, match="output folder"),
        PredictionStore(tmp_path / "file" / "p.ome.zarr"),
    ):
        pass


def test_what_is_no_store_says_so(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StorageError, match="no store"):
        stored(tmp_path)
    with pytest.raises(StorageError):
        load(path, "A9_000_t0_Phase")


def test_a_full_disk_keeps_what_was_written_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.ome.zarr"
    real = store.write_field

    def second_fails(folder: Path, given: Prediction, colors: Any) -> None:
        if given.info.key.position == "full":
            folder.mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, given, colors)

    monkeypatch.setattr(store, "write_field", second_fails)
    with pytest.raises(StorageError, match="No space left") as caught, PredictionStore(path) as writer:
        for position in ("first", "full", "after"):
            writer.put(prediction(position))
    assert "disk space" in str(caught.value.fix)
    assert stored(path) == ("A/1/firstt0Phase",)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_after_a_failure_put_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store, "write_field", fails)

    def put_until_refused(writer: PredictionStore) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            writer.put(prediction())

    with pytest.raises(StorageError, match="Input/output error"), PredictionStore(tmp_path / "p") as writer:
        put_until_refused(writer)


def test_a_disk_that_hangs_stops_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(store, "write_field", lambda *_: free.wait(30))
    with (
        pytest.raises(StorageError, match="does not keep up"),
        PredictionStore(tmp_path / "p", queue_fields=1, timeout_s=0.05) as writer,
    ):
        for _ in range(3):
            writer.put(prediction())
    free.set()
    writer._thread.join(10)
    assert not writer._thread.is_alive()


def test_put_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, real = threading.Event(), store.write_field

    def slow(*given: Any) -> None:
        assert free.wait(30)
        real(*given)

    monkeypatch.setattr(store, "write_field", slow)
    with PredictionStore(tmp_path / "p", queue_fields=4) as writer:
        for number in range(4):
            writer.put(prediction(f"f{number}"))
        assert writer.written == ()  # all four were taken while the disk stood still
        free.set()
    assert len(writer.written) == 4


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from acq_isl.stack import *
from acq_isl.storage.prediction_store import PredictionStore
with PredictionStore(sys.argv[1]) as writer:
    for number in range(10_000):
        info = StackInfo(StackKey(0, f"f{number}", "Phase"), (0.0,), (64, 64), 0.3)
        planes = np.full((1, 64, 64), number, np.float32)
        writer.put(Prediction(info, ("nuclei",), planes, planes, "", "m", "e"))
        if len(writer.written) >= 3:
            print("go", flush=True)
"""


def test_the_store_of_a_killed_run_opens_and_every_field_is_whole(tmp_path: Path) -> None:
    from yaozarrs import validate_zarr_store

    path = tmp_path / "p.ome.zarr"
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path), root], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline().strip() == b"go"
        run.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    validate_zarr_store(str(path))
    names = stored(path)
    assert len(names) >= 3
    for number, name in enumerate(names):
        assert np.all(load(path, name).mean == number)
