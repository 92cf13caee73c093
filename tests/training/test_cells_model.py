"""The model of adherent cells that ships: whole, described, above its floor, of any planes."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from acq_isl.engines import load_engine
from acq_isl.engines.model_file import read_model
from acq_isl.errors import StackRefused
from acq_isl.sim import CameraSettings, EpithelialSpecimen, Monolayer, View
from acq_isl.sim.optics.illumination import Brightfield
from acq_isl.sim.scope.camera import Camera
from acq_isl.stack import StackInfo, StackKey, ZStack

MODELS = Path(str(resources.files("acq_isl.models")))
MCF7 = Path(__file__).resolve().parents[3] / "shared" / "data" / "cross_lab" / "mcf7_bright_field"
UNEVEN_UM = (-5.0, -4.0, -1.0, 2.0, 3.5, 7.0)


@pytest.fixture(scope="module")
def engine():
    with load_engine("cells", backend="onnxruntime", threads=1) as found:
        yield found


def make_stack(planes, z_um, pixel_size_um=0.45, modality="brightfield"):
    info = StackInfo(StackKey(0, "A1", "Phase"), z_um, planes.shape[1:], pixel_size_um, modality=modality)
    return ZStack(info, planes, (0.0,) * len(planes))


@pytest.fixture(scope="module")
def field():
    """Planes that the simulated camera counts of a place, and what truly lies there."""
    specimen = EpithelialSpecimen(77, Brightfield(condenser_na=0.15), Monolayer(confluency=0.5, cell_um=20.0))
    camera, light = (
        Camera(CameraSettings(), seed=1),
        [specimen.render(View(40.0, 10.0, z, "Phase", 0.45, (256, 256))) for z in UNEVEN_UM],
    )
    counts = [camera.read(plane, flux=1.0, bit_depth=16, frame=(0, z)) for z, plane in enumerate(light)]
    return np.stack(counts).astype(np.uint16), specimen.truth(
        View(40.0, 10.0, 0.0, "Phase", 0.45, (256, 256))
    )


def pearson(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def floor(planes):
    """What needs no learning: contrast of the surroundings of each pixel."""
    fine = planes.astype(float) - ndimage.gaussian_filter(planes.astype(float), (0, 22, 22))
    return np.log(ndimage.gaussian_filter((fine**2).mean(axis=0), 3) + 1)


def test_its_card_is_of_this_file():
    content = (MODELS / "cells.onnx").read_bytes()
    assert len(content) < 6e6
    (named,) = re.findall(r"sha256 `([0-9a-f]{64})`", (MODELS / "cells.md").read_text())
    assert hashlib.sha256(content).hexdigest() == named
    manifest = read_model("cells").info.manifest
    assert manifest.label_names == ("nuclei", "cells", "dead") and manifest.any_planes is not None
    assert manifest.trained_on.endswith("no recorded image")


@pytest.mark.parametrize("taken", [slice(4, 5), slice(0, 6, 3), slice(None)], ids=["one", "two", "uneven"])
def test_it_predicts_cells_from_any_planes_of_the_simulated_microscope(engine, field, taken):
    planes, truth = field
    prediction = engine.predict(make_stack(planes[taken], UNEVEN_UM[taken]))
    assert prediction.mean.shape == (3, 256, 256)
    for label in ("nuclei", "cells"):
        r = pearson(prediction.label(label), truth[label])
        assert r > pearson(floor(planes[taken]), truth[label]), label
        assert r > {"nuclei": 0.5, "cells": 0.6}[label]


def test_it_refuses_other_light_and_pixels_of_another_scale(engine, field):
    planes = field[0][:1]
    for changes in ({"modality": "DIC"}, {"pixel_size_um": 4.323}):
        with pytest.raises(StackRefused):
            engine.predict(make_stack(planes, (0.0,), **changes))


@pytest.mark.skipif(not MCF7.is_dir(), reason="images of another laboratory are not here")
def test_nuclei_of_another_laboratory_are_above_the_floor(engine):
    light = tifffile.imread(MCF7 / "bright_field.ome.tif")[None]
    stain = tifffile.imread(MCF7 / "hoechst.ome.tif").astype(float)
    prediction = engine.predict(make_stack(light, (0.0,), 0.3112))
    assert pearson(prediction.label("nuclei"), stain) > 0.5 > pearson(floor(light), stain)
