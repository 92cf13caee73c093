"""The background removed plane by plane is the background of the graph, and of its definition."""

import numpy as np
import pytest
from scipy import ndimage

openvino = pytest.importorskip("openvino")

from acq_isl.engines.graph_tags import BackgroundTags, read_tags  # noqa: E402
from acq_isl.engines.model_file import read_model  # noqa: E402
from acq_isl.engines.onnx import OnnxEngine  # noqa: E402
from acq_isl.engines.openvino.background import plane_graph, smoothing, stretching  # noqa: E402
from acq_isl.engines.openvino.engine import OpenVinoEngine  # noqa: E402
from acq_isl.engines.openvino.parts import split_model  # noqa: E402
from acq_isl.stack import StackInfo, StackKey, ZStack  # noqa: E402

WEIGHTS = (1 / 11, 2 / 11, 5 / 11, 2 / 11, 1 / 11)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path / "cache"))


def by_definition(counts, inv_sd, block, averaged):
    """In float64: means of blocks, smoothed, stretched linearly between the middles of blocks."""
    high, wide = (side // block for side in counts.shape)
    blocks = counts.astype(float).reshape(high, block, wide, block)
    means = blocks[:, :averaged, :, :averaged].mean(axis=(1, 3))
    for axis in (0, 1):
        means = ndimage.correlate1d(means, WEIGHTS, axis=axis, mode="nearest")
    for axis, size in ((0, high), (1, wide)):
        place = (np.arange(size * block) + 0.5) / block - 0.5
        means = np.apply_along_axis(
            lambda line, p=place: np.interp(p, np.arange(len(line)), line), axis, means
        )
    return ((counts - means) * inv_sd).clip(-3, 4)


@pytest.mark.parametrize(("block", "averaged"), [(2, 2), (4, 4), (4, 2), (1, 1)])
@pytest.mark.parametrize("shape", [(8, 8), (40, 64), (128, 24)])
def test_a_plane_by_itself_is_what_the_definition_says(block, averaged, shape):
    tags = BackgroundTags(block_px=block, averaged_px=averaged, weights=WEIGHTS, least=-3, most=4)
    counts = np.random.default_rng(0).integers(0, 65535, shape).astype(np.uint16)
    feeds = {"stack": counts.reshape(-1, 1, block, shape[1]), "inv_sd": np.array([1e-4], np.float32)}
    got = run_in_fp32(plane_graph(tags, *shape, low=False), feeds).reshape(shape)
    np.testing.assert_allclose(got, by_definition(counts, 1e-4, block, averaged), atol=1e-5)


def run_in_fp32(graph, feeds):
    settings = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    return openvino.Core().compile_model(graph, "CPU", settings)(feeds)[0]


def test_the_tags_of_the_live_network_describe_its_graph():
    """Planes of unlike brightness and contrast, edges included."""
    file = read_model("demo")
    tags = read_tags(file.content)
    background, planes = tags.background, file.info.manifest.planes
    height, width = 9 * 16, 14 * 16
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 3000, width) + np.linspace(0, 1500, height)[:, np.newaxis]
    level = rng.uniform(0, 60000, (1, planes, 1, 1))
    counts = (level + slope + rng.normal(0, 900, (1, planes, height, width))).clip(0, 65535).astype(np.uint16)
    inv_sd = np.array([1 / 1000], np.float32)
    front = split_model(openvino.Core(), file, tags).front
    wanted = run_in_fp32(front, {"stack": counts, "inv_sd": inv_sd})[0]
    graph = plane_graph(background, height, width, low=False)
    for plane, image in zip(counts[0], wanted, strict=True):
        feeds = {"stack": plane.reshape(-1, 1, background.block_px, width), "inv_sd": inv_sd}
        # Counts are single precision: their rounding grows with them, and not with what is left.
        allowed = 1e-5 * (np.abs(image) + float(plane.max()) * inv_sd)
        assert (np.abs(run_in_fp32(graph, feeds).reshape(image.shape) - image) <= allowed).all()


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_smoothing_repeats_the_ends(size):
    line = np.random.default_rng(0).normal(size=size)
    wanted = ndimage.correlate1d(line, WEIGHTS, mode="nearest")
    np.testing.assert_allclose(smoothing(WEIGHTS, size) @ line, wanted, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4, 5])
def test_shares_of_stretching_sum_to_one(factor):
    np.testing.assert_allclose(stretching(factor).sum(axis=1), 1, atol=1e-6)


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
