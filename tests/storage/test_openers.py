"""Predictions are opened by the tools that people have: their root, and one image.

Needs the extra ``openers``, which CI installs into an environment of its own; skips without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.stack import Prediction, StackInfo, StackKey
from acq_isl.storage.prediction_store import PredictionStore, load

# Some of them warn of their own dependencies.
pytestmark = pytest.mark.filterwarnings("default")

FIELDS = {
    ("A1_000", 0): "A/1/A1000t0Phase",
    ("A1_001", 0): "A/1/A1001t0Phase",
    ("B2_000", 0): "B/2/B2000t0Phase",
    ("B2_000", 1): "B/2/B2000t1Phase",
}


def prediction(position: str, time: int) -> Prediction:
    info = StackInfo(
        StackKey(time, position, "Phase"),
        (0.0, 1.5),
        (40, 60),
        0.3,
        200.0 * int(position[-1]),
        90.0 if position.startswith("B2") else 0.0,
    )
    planes = np.random.default_rng(len(position) + time).random((2, 2, 40, 60), np.float32)
    return Prediction(info, ("nuclei", "axons"), planes[0], planes[1], "ab" * 32, "demo 4", "onnxruntime cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "predictions.ome.zarr"
    with PredictionStore(path, {"nuclei": "#56B4E9", "axons": "#E69F00"}) as store:
        for position, time in FIELDS:
            store.put(prediction(position, time))
    return path


def test_yaozarrs(root: Path) -> None:
    from yaozarrs import validate_zarr_store

    validate_zarr_store(str(root))


def test_ome_zarr_info(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    utils = pytest.importorskip("ome_zarr.utils")
    nodes = list(utils.info(str(root)))
    assert "Plate" in capsys.readouterr().out
    assert nodes and all(node.data for node in nodes)


def test_ome_zarr_models(root: Path) -> None:
    models, zarr = pytest.importorskip("ome_zarr_models"), pytest.importorskip("zarr")
    plate = models.open_ome_zarr(zarr.open_group(root, mode="r"))
    assert type(plate).__name__ == "HCS"
    assert [well.path for well in plate.ome_attributes.plate.wells] == ["A/1", "B/2"]
    image = models.open_ome_zarr(zarr.open_group(root / FIELDS["B2_000", 1], mode="r"))
    assert type(image).__name__ == "Image"


def test_ngff_zarr(root: Path) -> None:
    ngff = pytest.importorskip("ngff_zarr")
    plate = ngff.from_hcs_zarr(str(root), validate=True)
    assert len(plate.get_well("A", "1").images) == 2
    image = ngff.from_ngff_zarr(str(root / FIELDS["A1_001", 0]), validate=True).images[0]
    assert image.translation["x"] == pytest.approx(200.0 - 29.5 * 0.3)


def test_napari_ome_zarr(root: Path) -> None:
    """Its root is one picture, as of any plate. It places no image: version 0.10 drops translations."""
    plugin = pytest.importorskip("napari_ome_zarr")
    assert plugin.napari_get_reader(str(root))(str(root))
    for name in FIELDS.values():
        [(levels, settings, kind)] = plugin.napari_get_reader(str(root / name))(str(root / name))
        assert kind == "image" and np.asarray(levels[0]).shape == (4, 40, 60)
        assert "nuclei (predicted)" in settings["name"][0] and settings["visible"] == [True, False] * 2
        assert settings["scale"] == pytest.approx([0.3, 0.3])


def test_bioio(root: Path) -> None:
    bioio, plugin = pytest.importorskip("bioio"), pytest.importorskip("bioio_ome_zarr")
    whole = bioio.BioImage(root)
    assert len(whole.scenes) == 4
    for scene, name in zip(whole.scenes, FIELDS.values(), strict=True):
        whole.set_scene(scene)
        held = load(root, name)
        _same(whole.data[0, :, 0], held)
        one = bioio.BioImage(root / name, reader=plugin.Reader)
        assert one.physical_pixel_sizes.X == 0.3 and one.channel_names[0] == "nuclei (predicted)"
        _same(one.data[0, :, 0], held)


def test_tensorstore(root: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for name in FIELDS.values():
        where = {"driver": "file", "path": str(root / name / "0")}
        array = tensorstore.open({"driver": "zarr3", "kvstore": where}).result().read().result()
        _same(array, load(root, name))


def _same(planes: Any, held: Prediction) -> None:
    assert np.array_equal(planes[0::2], held.mean) and np.array_equal(planes[1::2], held.spread)
