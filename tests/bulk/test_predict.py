"""Stored stacks are predicted as live ones are, whole or not at all, whoever does it and however often."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner, Result

from acq_isl.bulk.executors import Processes
from acq_isl.bulk.find import _position, find_chunks
from acq_isl.bulk.output import Output
from acq_isl.bulk.run import Summary, predict_stored
from acq_isl.bulk.unit import Unit, open_engine
from acq_isl.bulk.work import Failed, Job, Predicted
from acq_isl.cli import cli
from acq_isl.cli.run import INCOMPLETE
from acq_isl.engines import load_engine
from acq_isl.errors import ExperimentError, StorageError
from acq_isl.readers.read import read_data_set, survey_data_set
from acq_isl.readers.recording import RecordedChannel, RecordedField
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.storage.prediction_store import load, stored
from doubles import tiny_model
from doubles.stored_plate import ENGINE, WELLS, digest, job, pixels, write_image, write_plate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    return write_plate(tmp_path / "screen 1.ome.zarr")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- what comes out -------------------------------------------------------------------------------


def test_a_plate_becomes_a_plate_and_stays_as_it_was(model: Path, plate: Path, tmp_path: Path) -> None:
    before, out = digest(plate), tmp_path / "out"
    summary = predict_stored([plate], job(model, out, measure=True))
    assert (summary.predicted, summary.complete, digest(plate)) == (6, True, before)
    store = out / "screen_1_predicted.ome.zarr"
    assert stored(store) == tuple(f"{w}/{w.replace('/', '')}{n}t0Phase" for w in WELLS for n in range(2))
    assert read_data_set(store).format == "an OME-Zarr plate"
    with load_engine(model, backend=ENGINE, threads=1) as engine:
        info = StackInfo(
            StackKey(0, "B12_1", "Phase"), (0.0, 1.5, 3.0, 4.5, 6.0), (72, 88), 0.3, modality="phase contrast"
        )
        live = engine.predict(ZStack(info, pixels(5), (0.0,) * 5))
    found = load(store, "B/12/B121t0Phase")
    np.testing.assert_array_equal(found.mean, live.mean)
    assert (found.info, found.warnings, found.counting) == (info, live.warnings, live.counting)
    measured = rows(out / "measurements.csv")
    assert {row["measurement"] for row in measured} == {
        "object_count", "length", "area_fraction", "mean_intensity"
    }  # fmt: skip
    assert [row["well"] for row in rows(out / "fields.csv")] == ["A1", "A1", "A2", "A2", "B12", "B12"]


def test_threads_formats_and_order_make_no_difference(model: Path, plate: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    predict_stored([plate], job(model, first, output="ome-tiff", measure=True))
    again = Job(str(model), job(model, second, output="ome-tiff", measure=True).settings, second, 2)
    engine = open_engine(again)
    out = Output(second, again.settings)
    with out.opened([plate]):
        for chunk in reversed(find_chunks([plate]).chunks):
            assert isinstance(Unit(again, engine).do(chunk).outcome, Predicted)
    engine.close()
    predict_stored([plate], again)
    assert digest(first) == digest(second)
    (field,) = read_data_set(first / "screen_1_predicted" / "A" / "1" / "A10t0Phase.ome.tif").fields
    assert field.channels[:2] == ("nuclei (predicted)", "nuclei (predicted, doubt)")
    assert field.channel(0).lengths.pixel_size_um == pytest.approx(0.3)


def test_files_of_one_folder_are_one_plate(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "screen"
    folder.mkdir()
    sizes = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 1.5}
    for number, name in enumerate(("A1_001", "A1_002", "B3_001")):
        tifffile.imwrite(folder / f"{name}.ome.tif", pixels(number), ome=True, metadata=sizes)
    for number, data in enumerate(([folder], sorted(folder.iterdir()))):
        out = tmp_path / f"out{number}"
        assert predict_stored(data, job(model, out)).predicted == 3
        wells = [name.rpartition("/")[0] for name in stored(out / "screen_predicted.ome.zarr")]
        assert wells == ["A/1", "A/1", "B/3"]


def ndtiff(folder: Path) -> Path:
    from ndstorage.ndtiff_dataset import NDTiffDataset

    data = NDTiffDataset(str(folder), writable=True, summary_metadata={})
    for z, plane in enumerate(pixels(1)):
        about = {"PixelSize_um": 0.3, "ZPosition_um": 1.5 * z}
        data.put_image({"channel": "Phase", "position": "A1_003", "z": z, "time": 0}, plane, about)
    data.finish()
    data.close()
    return folder


def image_files(folder: Path) -> Path:
    about = {"Summary": {"PixelSize_um": 0.3, "z-step_um": 1.5, "ChNames": ["Phase"], "Slices": 5}}
    for z, plane in enumerate(pixels(1)):
        name = f"img_channel000_position000_time000000000_z{z:03d}.tif"
        tifffile.imwrite(folder / name, plane)
    (folder / "metadata.txt").write_text(json.dumps(about))
    return folder


def imagej(folder: Path) -> Path:
    about = {"axes": "ZYX", "unit": "um", "spacing": 1.5}
    path = folder / "A1_003.tif"
    tifffile.imwrite(path, pixels(1), imagej=True, resolution=(1 / 0.3, 1 / 0.3), metadata=about)
    return path


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*NDTiffStack:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("write", [ndtiff, image_files, imagej], ids=lambda write: write.__name__)
def test_every_format_that_is_read_is_predicted_alike(
    write: Callable[[Path], Path], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "A1"
    folder.mkdir()
    summary = predict_stored([write(folder)], job(model, tmp_path / "out"))
    assert (summary.predicted, summary.complete) == (1, True), summary
    (store,) = (tmp_path / "out").glob("*.ome.zarr")
    (name,) = stored(store)
    with load_engine(model, backend=ENGINE, threads=1) as engine:
        live = engine.predict(tiny_model.stack(seed=1))
    assert name.startswith("A/1/")
    np.testing.assert_array_equal(load(store, name).mean, live.mean)


# --- what is wrong with the data ------------------------------------------------------------------


def lose_well(plate: Path) -> None:
    shutil.rmtree(plate / "A" / "2")


def other_pixels(plate: Path) -> None:
    write_image(plate / "A" / "2" / "0", pixels(2), pixel_um=1.3)


def other_names(plate: Path) -> None:
    for field in "01":
        write_image(plate / "A" / "2" / field, pixels(2), name="Cy5")


def lose_planes(plate: Path) -> None:
    shutil.rmtree(plate / "A" / "2" / "1" / "0" / "c" / "0" / "0" / "3")


def cut_short(plate: Path) -> None:
    chunk = plate / "A" / "2" / "1" / "0" / "c" / "0" / "0" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])


def break_metadata(plate: Path) -> None:
    (plate / "A" / "2" / "1" / "zarr.json").write_text('{"zarr_format": 3, "attrib')


BAD = {
    lose_well: (4, 0, ["A2 A/2: the plate lists a well that is not there"]),
    other_pixels: (
        5,
        1,
        ["A2_0 t0: stack A2_0 t0 Phase: pixels are 1.3 um, the model was trained at 0.3 um"],
    ),
    other_names: (4, 0, ["A2 A/2/0: which channel of", "A2 A/2/1: which channel of"]),
    lose_planes: (5, 0, ["A2_1 t0: ", "parts of a stack are missing"]),
    cut_short: (5, 0, ["A2_1 t0: the pixels of"]),
    break_metadata: (5, 0, ["A2 A/2/1: ", "cannot be read as OME-Zarr"]),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_is_bad_is_named_and_the_rest_goes_on(
    spoil: Callable[[Path], None], model: Path, plate: Path, tmp_path: Path
) -> None:
    predicted, refused, words = BAD[spoil]
    spoil(plate)
    summary = predict_stored([plate], job(model, tmp_path / "out"))
    told = summary.refused + summary.failed
    assert (summary.predicted, len(summary.refused), summary.complete) == (predicted, refused, False)
    assert all(any(word in line for line in told) for word in words)
    states = [row["status"] for row in rows(tmp_path / "out" / "fields.csv")]
    assert states.count("predicted") == predicted and len(set(states)) == 2
    assert len(stored(tmp_path / "out" / "screen_1_predicted.ome.zarr")) == predicted
    if spoil is not other_pixels:
        with pytest.raises(StorageError):  # who wants the whole plate is told as before
            for field in read_data_set(plate).fields:
                field.channel(field.transmitted()).read()


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ("DAPI", "the stack is fluorescence"),
        ("EGFP", "the stack is fluorescence"),
        ("TL_DIC", "the stack is DIC"),
        ("BF", "the stack is brightfield"),
    ],
)
def test_light_that_the_name_tells_is_refused_where_it_does_not_fit(
    channel: str, words: str, model: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.ome.zarr", pixels(1), name=channel)
    todo = job(model, tmp_path / "out", transmitted=channel)
    (refused,) = predict_stored([tmp_path / "a.ome.zarr"], todo).refused
    assert words in refused
    told = job(model, tmp_path / "told", transmitted=channel, light="phase contrast")
    assert predict_stored([tmp_path / "a.ome.zarr"], told).complete


def test_a_truncated_file_of_a_folder_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    for number in range(3):
        tifffile.imwrite(tmp_path / f"A{number + 1}.tif", pixels(number), metadata={"axes": "ZYX"})
    (tmp_path / "A2.tif").write_bytes((tmp_path / "A2.tif").read_bytes()[:300])
    data = survey_data_set(tmp_path)
    assert [field.well for field in data.fields] == ["A1", "A3"]
    assert [(each.name, each.well) for each in data.damaged] == [("A2", "A2")]
    with pytest.raises(StorageError, match=r"A2\.tif"):
        read_data_set(tmp_path)


def test_a_full_disk_and_a_drive_that_vanished_leave_nothing_half(
    model: Path, plate: Path, tmp_path: Path
) -> None:
    todo = job(model, tmp_path / "out")
    chunks = find_chunks([plate]).chunks
    engine = open_engine(todo)
    with Output(todo.out, todo.settings).opened([plate]):
        full = Unit(todo, engine, free=lambda folder: 1 << 20).do(chunks[0]).outcome
        assert isinstance(full, Failed) and "no space left" in full.reason
        shutil.move(plate, tmp_path / "elsewhere")
        gone = Unit(todo, engine).do(chunks[0]).outcome
        assert isinstance(gone, Failed) and str(plate) in gone.reason
    engine.close()
    assert sorted(digest(todo.out)) == ["predict.json"]
    shutil.move(tmp_path / "elsewhere", plate)
    assert predict_stored([plate], todo).predicted == 6


@pytest.mark.parametrize(
    ("name", "well", "position"),
    [
        ("A/1/0", "A1", "A1_0"),
        ("AF/48/3", "AF48", "AF48_3"),
        ("A1-Site_3", "A1", "A1_Site_3"),
        ("A1", "A1", "A1"),
        ("A10_2", "A1", "A1_A10_2"),
        ("Pos0", None, "Pos0"),
    ],
)
def test_positions_begin_with_their_well(name: str, well: str | None, position: str, tmp_path: Path) -> None:
    def no_channel(number: int) -> RecordedChannel:
        raise StorageError("nothing is opened")

    found = RecordedField(tmp_path, name, ("Phase",), no_channel, (tmp_path,), well=well)
    assert _position(found) == position


# --- where it may go ------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(model: Path, plate: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_stored([plate], job(model, out))
    before = digest(out)
    for name, value in {
        "gate": "warn",
        "measure": True,
        "output": "ome-tiff",
        "model_sha256": "0" * 64,
    }.items():
        with pytest.raises(StorageError, match=f"another {name.replace('_', ' ')}"):
            predict_stored([plate], job(model, out, **{name: value}))
    write_image(plate / "A" / "1" / "0", pixels(9))
    changed = predict_stored([plate], job(model, out))
    assert "are not those that were predicted" in changed.failed[0] and changed.predicted == 5
    assert {k: v for k, v in digest(out).items() if "A10" in k} == {
        k: v for k, v in before.items() if "A10" in k
    }


def test_never_into_the_data_and_never_from_predictions(model: Path, plate: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="lies within the data"):
        predict_stored([plate], job(model, plate / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("chapter 1")
    with pytest.raises(StorageError, match="holds other things"):
        predict_stored([plate], job(model, tmp_path / "mine"))
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]
    predict_stored([plate], job(model, tmp_path / "out"))
    with pytest.raises(StorageError, match="holds predictions"):
        predict_stored([tmp_path / "out" / "screen_1_predicted.ome.zarr"], job(model, tmp_path / "twice"))


def test_the_command_says_what_it_did_and_its_code_tells(model: Path, plate: Path, tmp_path: Path) -> None:
    given = ["predict", str(plate), "-m", str(model), "-o", str(tmp_path / "out"), "--threads", "1"]

    def call(*more: str) -> Result:
        return CliRunner().invoke(cli, [*given, *more])

    other_pixels(plate)
    first = call("--backend", ENGINE)
    assert first.exit_code == INCOMPLETE, first.output
    assert "5 fields predicted, 1 refused, 0 failed" in first.output
    assert "A2_0 t0: stack A2_0 t0 Phase: pixels are 1.3 um" in first.output and "to fix:" in first.output
    again = call()
    assert again.exit_code == INCOMPLETE and "(6 done before)" in again.output
    refused = call("--light", "moonlight")
    assert isinstance(refused.exception, ExperimentError)


# --- killed ---------------------------------------------------------------------------------------


def begin(data: Path, model: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "acq_isl", "predict", str(data), "-m", str(model), "-o", str(out)]
    return subprocess.Popen([*command, "--measure", "--backend", ENGINE, "--threads", "1"])


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not there() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def test_killed_and_made_again_it_is_the_same_to_the_byte(model: Path, plate: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    todo = job(model, cut, measure=True)
    predict_stored([plate], job(model, whole, measure=True))
    with begin(plate, model, cut) as process:
        wait_for(lambda: len(list(cut.glob("records/*/*.json"))) > 0, process)
        process.send_signal(signal.SIGKILL)
    assert not (cut / "fields.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in cut.glob("records/*/*.json")}
    assert 0 < len(before) < 6
    summary = predict_stored([plate], todo)
    assert (summary.predicted, summary.before) == (6, len(before))
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert digest(whole) == digest(cut)


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(model: Path, plate: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(*_: object) -> None:
        import psutil

        children = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
        if not killed and children:
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)

    one, two = tmp_path / "one", tmp_path / "two"
    predict_stored([plate], job(model, one))
    summary: Summary = predict_stored([plate], job(model, two), Processes(2), watch=kill)
    assert killed and summary.complete
    assert digest(one) == digest(two)
