"""The background removed plane by plane is the background of the graph, and of its definition."""

import numpy as np
import pytest
from scipy import ndimage

openvino = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from acq_isl.engines.model_file import read_model  # noqa: E402
from acq_isl.engines.onnx import OnnxEngine  # noqa: E402
from acq_isl.engines.openvino.background import find_background, plane_graph, smoothing, stretching  # noqa: E402
from acq_isl.engines.openvino.engine import OpenVinoEngine  # noqa: E402
from acq_isl.engines.openvino.graph import in_fp32, read_graph  # noqa: E402
from acq_isl.stack import StackInfo, StackKey, ZStack  # noqa: E402

PLANES = 3
ROWS = np.array([1, 2, 5, 2, 1], np.float32) / 11
COLUMNS = np.array([3, 4, 3], np.float32) / 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path / "cache"))


def ints(*values):
    return ops.constant(np.array(values, np.int64))


def front(*, pad="edge", stretch="linear_onnx", unlike=0.0, sign=-1.0, block=4, taken=None):
    """Counts minus a smoothed background of block means, as exporters write it."""
    stack = ops.parameter([-1, PLANES, -1, -1], openvino.Type.u16, name="stack")
    inv_sd = ops.parameter([-1], openvino.Type.f32, name="inv_sd")
    for port in (stack, inv_sd):
        port.output(0).set_names({port.get_friendly_name()})
    counts = ops.convert(stack, openvino.Type.f32)
    x = ops.avg_pool(counts, [block] * 2, [0, 0], [0, 0], [taken or block] * 2, False, "floor", "explicit")
    x = ops.pad(x, ints(0, 0, 2, 1), ints(0, 0, 2, 1), pad)
    for kernel in (ROWS.reshape(1, 1, 1, -1, 1), COLUMNS.reshape(1, 1, 1, 1, -1)):
        weights = np.repeat(kernel, PLANES, axis=0)
        weights[-1] *= 1 + unlike
        x = ops.group_convolution(x, ops.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])
    scales = ops.constant(np.array([1, 1, block, block], np.float32))
    x = ops.interpolate(x, scales, stretch, "scales", coordinate_transformation_mode="half_pixel")
    x = ops.add(counts, ops.multiply(x, ops.constant(np.float32(sign))))
    x = ops.multiply(x, ops.reshape(inv_sd, ints(-1, 1, 1, 1), False))
    x = ops.clamp(x, -3.0, 4.0)
    return openvino.Model([ops.result(x.output(0))], [stack, inv_sd], "front")


def by_definition(counts, inv_sd, block=4):
    """The same in float64: block means, smoothed, stretched linearly between the middles of blocks."""
    high, wide = (side // block for side in counts.shape)
    means = counts.astype(float).reshape(high, block, wide, block).mean(axis=(1, 3))
    means = ndimage.correlate1d(means, ROWS.astype(float), axis=0, mode="nearest")
    means = ndimage.correlate1d(means, COLUMNS.astype(float), axis=1, mode="nearest")
    for axis, size in ((0, high), (1, wide)):
        place = (np.arange(size * block) + 0.5) / block - 0.5
        means = np.apply_along_axis(
            lambda line, p=place: np.interp(p, np.arange(len(line)), line), axis, means
        )
    return ((counts - means) * inv_sd).clip(-3, 4)


@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize("shape", [(8, 8), (40, 64), (128, 24)])
def test_a_plane_by_itself_is_what_the_definition_says(block, shape):
    found = find_background(openvino.Core(), front(block=block))
    assert (found.block, found.planes, found.least, found.most) == (block, PLANES, -3.0, 4.0)
    counts = np.random.default_rng(0).integers(0, 65535, shape).astype(np.uint16)
    graph = plane_graph(found, *shape, low=False)
    feeds = {"stack": counts.reshape(-1, 1, block, shape[1]), "inv_sd": np.array([1e-4], np.float32)}
    got = in_fp32(openvino.Core(), graph)(feeds)[0].reshape(shape)
    np.testing.assert_allclose(got, by_definition(counts, 1e-4, block), atol=1e-5)


LOOK_ALIKE = {
    "another padding": {"pad": "reflect"},
    "another way to stretch": {"stretch": "nearest"},
    "planes that are smoothed unlike": {"unlike": 0.01},
    "a background that is added": {"sign": 1.0},
    "a background that is halved": {"sign": -0.5},
}


@pytest.mark.parametrize("case", LOOK_ALIKE)
def test_what_only_looks_alike_is_left_as_it_is(case):
    assert find_background(openvino.Core(), front(**LOOK_ALIKE[case])) is None


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_smoothing_repeats_the_ends(size):
    line = np.random.default_rng(0).normal(size=size)
    wanted = ndimage.correlate1d(line, ROWS.astype(float), mode="nearest")
    np.testing.assert_allclose(smoothing(ROWS, size) @ line, wanted, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4, 5])
def test_shares_of_stretching_sum_to_one(factor):
    np.testing.assert_allclose(stretching(factor).sum(axis=1), 1, atol=1e-6)


def test_a_corner_may_stand_for_its_block():
    found = find_background(openvino.Core(), front(taken=2))
    assert found is not None and (found.block, found.taken) == (4, 2)


def test_the_background_of_the_live_network_is_found():
    core = openvino.Core()
    parts = read_graph(core, read_model("demo").content, split=True)
    found = find_background(core, parts.front)
    assert found is not None and (found.block, found.taken, found.planes) == (4, 2, 13)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 2e-5), ("bf16", 0.1)])
def test_the_live_network_says_what_the_reference_says(precision, allowed):
    rules = read_model("demo").info.manifest
    shape = (200, 260)
    noise = np.random.default_rng(0).normal(size=(rules.planes, *shape))
    smooth = ndimage.gaussian_filter(noise, (2, 3, 3))
    pixels = (20000 + 2000 * smooth / smooth.std() + 40 * noise).clip(0, 65535).astype(np.uint16)
    info = StackInfo(
        StackKey(0, "A1", "Phase"), rules.z_offsets_um, shape, rules.pixel_size_um,
        modality=rules.modality, polarity=rules.polarity,
    )  # fmt: skip
    stack = ZStack(info, pixels, (0.0,) * rules.planes)
    with OpenVinoEngine("demo", precision=precision, threads=1) as engine, OnnxEngine("demo") as other:
        got, wanted = engine.rehearse(stack)[0], other.rehearse(stack)[0]
    for name in ("mean", "spread"):
        one, reference = getattr(got, name), getattr(wanted, name)
        assert np.abs(one - reference).max() <= allowed * max(np.abs(reference).max(), 1)
        assert np.corrcoef(one.ravel(), reference.ravel())[0, 1] > 0.995
