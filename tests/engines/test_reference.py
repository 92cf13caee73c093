"""The published network in the engines: every pixel of a field answered, in tiles that fit the memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine, OnnxNetwork
from acq_isl.engines.predictor import Predictor
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.training.reference.convert import Optics, import_reference

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden checkpoint at {GOLDEN}")
Z_UM = (-3.0, 0.0, 3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "model.onnx"
    optics = Optics("phase contrast", "unknown", 0.3, Z_UM, high_pass_um=3.0)
    import_reference(GOLDEN, path, optics, heads=["DAPI_CONFOCAL"], form="single phase")
    return path


def stack_of(shape):
    noise = np.random.default_rng(0).normal(size=(len(Z_UM), *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    pixels = (30000 + 4000 * smooth / smooth.std()).clip(0, 65535).astype(np.uint16)
    info = StackInfo(StackKey(0, "A1", "Phase"), Z_UM, shape, 0.3, modality="phase contrast")
    return ZStack(info, pixels, (0.0,) * len(Z_UM))


class Counted:
    """A network that notes the tiles it is given."""

    def __init__(self, network):
        self.network, self.name, self.outputs, self.sides = network, network.name, network.outputs, []

    def run(self, tiles, inv_sd):
        self.sides.append(tiles.shape[2:4])
        return self.network.run(tiles, inv_sd)

    def close(self):
        self.network.close()


def test_every_pixel_is_answered_in_bounded_tiles(model):
    file, stack = read_model(model), stack_of((60, 480))
    rules = file.info.manifest
    network = Counted(OnnxNetwork(file, threads=1))
    with Predictor(file.info, network) as engine:
        prediction = engine.predict(stack)
    assert prediction.mean.shape == (1, 60, 480)
    assert (prediction.mean > 0).all() and (prediction.spread > 0).all()
    assert len(network.sides) > 1
    assert max(max(sides) for sides in network.sides) <= rules.max_tile_px
    # Less certain: as wide as what lies outside is looked at, or the whole field if it is smaller.
    assert prediction.border_px == min(rules.margin_px or rules.halo_px, 30)


def test_tiles_leave_no_trace(model):
    stack = stack_of((40, 440))
    with OnnxEngine(model, threads=1) as tiled, OnnxEngine(model, threads=1, tile_px=None) as whole:
        got, wanted = tiled.predict(stack), whole.predict(stack)
    for name in ("mean", "spread"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=1e-5)


def test_no_run_takes_memory_beside_what_the_one_before_left(model, monkeypatch):
    """The published width took 2.1 GB from its second run on; here the settings that keep it from that."""
    made, build = [], onnxruntime.InferenceSession

    def noted(content, options, providers):
        made.append((options.enable_mem_pattern, providers))
        return build(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    file = read_model(model)
    OnnxNetwork(file, threads=1).close()
    unbounded = file.info.manifest.model_copy(update={"max_tile_px": None})
    OnnxNetwork(replace(file, info=replace(file.info, manifest=unbounded)), threads=1).close()
    same = {"arena_extend_strategy": "kSameAsRequested"}
    assert made == [(False, [("CPUExecutionProvider", same)]), (True, [("CPUExecutionProvider", {})])]
