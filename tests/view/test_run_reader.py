"""A run folder in napari: fields where they lie, measured and predicted told apart, chosen ones framed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import StorageError
from acq_isl.stack import Prediction, StackInfo, StackKey
from acq_isl.storage.decision_log import Ledger
from acq_isl.storage.prediction_store import PredictionStore

pytest.importorskip("dask")
from acq_isl.view.napari.run_reader import find_run_reader, read_run

SHAPE = (32, 48)


def prediction(position: str, x_um: float, time: int = 0) -> Prediction:
    info = StackInfo(StackKey(time, position, "Phase"), (0.0, 1.5, 3.0), SHAPE, 0.5, x_um, 10.0)
    planes = np.full((2, *SHAPE), time + x_um / 1000, np.float32)
    return Prediction(info, ("nuclei", "axons"), planes, planes, "ab" * 32, "demo 4", "onnxruntime cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with PredictionStore(tmp_path / "predictions.ome.zarr", {"nuclei": "#56B4E9"}) as store:
        for one in (prediction("p0", 0.0), prediction("p1", 100.0), prediction("p1", 100.0, 1)):
            store.put(one)
    with Ledger(tmp_path / "decisions.jsonl") as ledger:
        for position, chosen in (("p0", False), ("p1", True)):
            key = {"time": 1, "position": position, "channel": "Phase"}
            ledger.write("choice", key=key, rank=1 + (not chosen), chosen=chosen, reason="most nuclei")
    from ndstorage.ndtiff_dataset import NDTiffDataset

    data = NDTiffDataset(str(tmp_path / "measured_1"), summary_metadata={}, writable=True)
    for position, time in (("p0", 0), ("p1", 1)):
        for z in (2, 0, 1):
            axes = {"time": time, "position": position, "channel": "Phase", "z": z}
            tags = {"Axes": axes, "PixelSizeUm": 0.5, "ZPosition_um_Intended": 1.5 * z}
            data.put_image(axes, np.full(SHAPE, 100 + z, np.uint16), tags)
        axes = {"time": time, "position": position, "channel": "DAPI"}
        data.put_image(axes, np.full(SHAPE, 7, np.uint16), {"Axes": axes, "PixelSizeUm": 0.5})
    data.finish()
    data.close()
    return tmp_path


def test_every_field_is_a_layer_where_it_lies(run: Path) -> None:
    layers = {settings["name"]: (data, settings, kind) for data, settings, kind in read_run(run)}
    data, settings, kind = layers["nuclei (predicted) p1"]
    assert kind == "image" and np.allclose(np.asarray(data), 1.1), "its last time point"
    assert settings["scale"] == (0.5, 0.5)
    assert settings["translate"] == pytest.approx((10.0 - 15.5 * 0.5, 100.0 - 23.5 * 0.5))
    assert settings["metadata"]["predicted"] and settings["visible"]
    assert not layers["nuclei (predicted, doubt) p1"][1]["visible"]
    assert {name for name in layers if "p0" in name} == {
        "Phase (measured) p0",
        "DAPI (measured) p0",
        "nuclei (predicted) p0",
        "nuclei (predicted, doubt) p0",
        "axons (predicted) p0",
        "axons (predicted, doubt) p0",
    }


def test_measured_planes_lie_under_their_predictions(run: Path) -> None:
    layers = {settings["name"]: (data, settings) for data, settings, _ in read_run(run)}
    data, settings = layers["Phase (measured) p1"]
    assert np.all(np.asarray(data) == 101), "the middle plane"
    assert settings["translate"] == layers["axons (predicted) p1"][1]["translate"]
    assert not layers["DAPI (measured) p1"][1]["visible"]


def test_chosen_fields_are_framed_with_the_reason(run: Path) -> None:
    [(corners, settings, kind)] = [layer for layer in read_run(run) if layer[1]["name"] == "chosen fields"]
    assert kind == "shapes" and settings["features"] == {"rank": [1], "reason": ["most nuclei"]}
    assert np.allclose(corners[0], [[10.0 - 8.0, 100.0 - 12.0], [10.0 + 8.0, 100.0 + 12.0]])


def test_predictions_alone_and_what_is_no_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert find_run_reader(str(run / "predictions.ome.zarr")) is not None
    assert find_run_reader([str(run)]) is not None
    other = tmp_path_factory.mktemp("other")
    assert find_run_reader(str(other)) is None
    assert find_run_reader(str(other / "missing.tif")) is None
    with pytest.raises(StorageError, match="no run"):
        read_run(other)


def test_napari_asks_it_for_folders_and_not_for_every_picture(tmp_path: Path) -> None:
    """A reader that takes any file makes napari ask which one to use whenever somebody opens a TIFF."""
    npe2 = pytest.importorskip("npe2")
    manager = npe2.PluginManager()
    path = Path(__file__).resolve().parents[2] / "acq_isl" / "napari.yaml"
    manager.register(npe2.PluginManifest.from_file(path))
    assert list(manager.iter_compatible_readers(str(tmp_path / "cells.tif"))) == []
    (reader,) = manager.iter_compatible_readers(str(tmp_path))
    assert reader.command == "acq-isl.read"
