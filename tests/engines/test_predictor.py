"""From stack to prediction around a network that can be read: a blur with a known reach."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, StackRefused
from acq_isl.manifest import AnyPlanes, Label, Manifest
from acq_isl.processing.normalize import contrast_sd
from acq_isl.stack import StackInfo, StackKey, ZStack

REACH_PX = 12
BORDER_PX = 8  # one size step
MANIFEST = Manifest(
    name="blur",
    version="2",
    licence="BSD-3-Clause",
    description="For tests.",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=(-1.0, 0.0, 1.0),
    high_pass_um=3.0,
    labels=(Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH")),
    min_tile_px=32,
    halo_px=16,
    size_step_px=8,
    trained_on="nothing",
)
MODEL = ModelInfo("blur.onnx", "ab" * 32, 1, MANIFEST, 20, (), ())


class BlurNetwork:
    """Reads camera bytes, blurs the mean of the planes, and keeps a list of what it was given."""

    name, outputs = "blur cpu fp32", ("mean", "spread")

    def __init__(self, answer=None):
        self.shapes, self.inv_sds, self.closed, self.answer = [], [], False, answer

    def run(self, tiles, inv_sd):
        if self.closed:
            raise EngineError("the engine is closed", fix="load the engine again")
        assert tiles.dtype == np.uint8 and tiles.flags.c_contiguous and inv_sd.dtype == np.float32
        self.shapes.append(tiles.shape)
        self.inv_sds.extend(inv_sd.tolist())
        counts = (tiles[..., 0] + 256.0 * tiles[..., 1]).astype(np.float32)
        light = ndimage.uniform_filter(counts.mean(axis=1), (1, 2 * REACH_PX + 1, 5), mode="constant")
        mean = np.stack([light, light / 2], axis=1) * inv_sd[:, None, None, None]
        spread = np.abs(mean) + 0.1
        return self.answer(mean, spread) if self.answer else (mean, spread)

    def close(self):
        self.closed = True


def culture(shape, planes=3, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1, (planes, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5), mode="wrap")
    return np.clip(30000 + 20000 * smooth + 100 * noise, 0, 65535).astype(np.uint16)


def stack_of(pixels, **changes):
    z_um = tuple(float(z) for z in range(len(pixels)))
    info = StackInfo(
        StackKey(0, "A1", "Phase"), z_um, pixels.shape[1:], 0.3, modality="phase contrast", polarity="dark"
    )
    return ZStack(dataclasses.replace(info, **changes), pixels, (0.0,) * len(pixels))


def test_a_prediction_says_all_there_is_to_know():
    stack = stack_of(culture((100, 130)))
    with Predictor(MODEL, BlurNetwork()) as engine:
        prediction = engine.predict(stack)
    assert prediction.info is stack.info
    assert prediction.labels == ("nuclei", "axons")
    assert prediction.display_names == ("nuclei (predicted)", "axons (predicted)")
    assert prediction.mean.shape == prediction.spread.shape == (2, 100, 130)
    assert prediction.mean.dtype == prediction.spread.dtype == np.float32
    assert prediction.mean.flags.c_contiguous and prediction.spread.flags.c_contiguous
    assert (prediction.model_name, prediction.model_sha256) == ("blur 2", "ab" * 32)
    assert prediction.engine == "blur cpu fp32"
    assert prediction.warnings == ()
    assert prediction.border_px == MANIFEST.halo_px
    assert prediction.times.infer_ms > 0 and prediction.times.decode_ms > 0


def test_the_network_sees_the_counts_and_the_contrast_of_the_whole_stack():
    pixels, network = culture((96, 96)), BlurNetwork()
    prediction = Predictor(MODEL, network, tile_px=64, border_px=0).predict(stack_of(pixels))
    assert len(network.shapes) > 1
    assert set(network.inv_sds) == {np.float32(1 / contrast_sd(pixels, 10.0))}
    counts = pixels.astype(np.float32).mean(axis=0)
    wanted = ndimage.uniform_filter(counts, (2 * REACH_PX + 1, 5), mode="constant") / contrast_sd(
        pixels, 10.0
    )
    np.testing.assert_allclose(prediction.mean[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(prediction.spread[1], wanted / 2 + 0.1, rtol=1e-5)


def test_a_field_is_surrounded_by_its_reflection():
    pixels, network = culture((96, 96)), BlurNetwork()
    prediction = Predictor(MODEL, network).predict(stack_of(pixels))
    assert [shape[2:4] for shape in network.shapes] == [(96 + 2 * BORDER_PX, 96 + 2 * BORDER_PX)]
    around = np.pad(pixels.astype(np.float32).mean(axis=0), BORDER_PX, mode="reflect")
    wanted = ndimage.uniform_filter(around, (2 * REACH_PX + 1, 5), mode="constant")[8:-8, 8:-8]
    np.testing.assert_allclose(prediction.mean[0], wanted / contrast_sd(pixels, 10.0), rtol=1e-5)
    assert prediction.border_px == MANIFEST.halo_px  # the reflection is a guess: still less certain


@pytest.mark.parametrize(("tile_px", "longest"), [(None, 256), (200, 96), (80, 80)])
def test_a_model_bounds_its_tiles_and_what_it_leaves_blank_is_never_shown(tile_px, longest):
    rules = MANIFEST.model_copy(update={"max_tile_px": 96, "blank_px": 13, "halo_px": 27, "margin_px": 20})

    def blanked(mean, spread):
        for values in (mean, spread):
            for edge in (np.s_[..., :13, :], np.s_[..., -13:, :], np.s_[..., :13], np.s_[..., -13:]):
                values[edge] = -1e6
        return mean, spread

    network = BlurNetwork(blanked)
    model = dataclasses.replace(MODEL, manifest=rules)
    prediction = Predictor(model, network, tile_px=tile_px).predict(stack_of(culture((203, 181))))
    assert max(max(shape[2:4]) for shape in network.shapes) <= longest
    assert prediction.mean.min() > 0
    assert prediction.border_px == 20


SIDES = [
    (256, 256),
    (257, 300),
    (1023, 511),
    (1024, 1024),
    (2048, 300),
    (2304, 2304),
    (300, 4096),
    (4096, 4096),
]


@pytest.mark.parametrize("shape", SIDES)
def test_fields_from_256_to_4096_px(shape):
    pixels = np.tile(culture((512, 512)), (1, -(-shape[0] // 512), -(-shape[1] // 512)))
    pixels = np.ascontiguousarray(pixels[:, : shape[0], : shape[1]])
    network = BlurNetwork()
    prediction = Predictor(MODEL, network, tile_px=1280).predict(stack_of(pixels))
    assert prediction.mean.shape == (2, *shape)
    assert max(max(tile[2:4]) for tile in network.shapes) <= 1280
    counts = pixels.mean(axis=0, dtype=np.float32)
    wanted = ndimage.uniform_filter(counts, (2 * REACH_PX + 1, 5), mode="mirror")
    inner = np.s_[REACH_PX:-REACH_PX, 8:-8]
    np.testing.assert_allclose(
        prediction.mean[0][inner], wanted[inner] / contrast_sd(pixels, 10.0), rtol=1e-4
    )


@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    tile_px=st.integers(1, 96),
    tiles_per_batch=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_any_field_size_tiled_or_not_gives_the_same(shape, tile_px, tiles_per_batch):
    stack = stack_of(culture((150, 150))[:, : shape[0], : shape[1]].copy())
    if np.ptp(stack.pixels, axis=(1, 2)).min() < 100:
        return  # a pixel or two without contrast are refused, which has its own test
    whole = Predictor(MODEL, BlurNetwork(), tile_px=None).predict(stack)
    network = BlurNetwork()
    tiled = Predictor(MODEL, network, tile_px=tile_px, tiles_per_batch=tiles_per_batch).predict(stack)
    assert whole.mean.shape == (2, *shape)
    for name in ("mean", "spread"):
        one, other = getattr(whole, name), getattr(tiled, name)
        assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
    for count, _, height, width, _ in network.shapes:
        assert count <= tiles_per_batch
        assert height % MANIFEST.size_step_px == width % MANIFEST.size_step_px == 0
        assert min(height, width) >= MANIFEST.min_tile_px and max(height, width) <= max(tile_px, 64)


@pytest.mark.parametrize(
    ("changes", "planes", "said"),
    [
        ({"pixel_size_um": 0.4}, 3, "pixels of 0.4 um were resampled"),
        ({"pixel_size_um": 0.2}, 3, "pixels of 0.2 um were resampled"),
        ({"z_um": (0.0, 0.5, 1.0, 1.5, 2.0)}, 5, "5 planes 0.5 um apart were resampled"),
    ],
)
def test_a_resampled_stack_is_predicted_on_its_own_grid_with_a_warning(changes, planes, said):
    pixels, network = culture((90, 120), planes), BlurNetwork()
    stack = stack_of(pixels)
    stack = ZStack(dataclasses.replace(stack.info, **changes), pixels, stack.captured_s)
    prediction = Predictor(MODEL, network).predict(stack)
    scale = stack.info.pixel_size_um / MANIFEST.pixel_size_um
    assert said in prediction.warnings[0]
    assert prediction.mean.shape == (2, 90, 120)
    assert network.shapes[0][1] == MANIFEST.planes
    assert network.shapes[0][2] == -(-(round(90 * scale) + 2 * BORDER_PX) // 8) * 8
    assert prediction.border_px == -(-16 // scale)
    used = pixels[:: (planes - 1) // 2].astype(float).mean(axis=0)
    wanted = ndimage.uniform_filter(used, (round((2 * REACH_PX + 1) / scale), round(5 / scale)))
    inner = (slice(20, -20), slice(10, -10))
    assert np.corrcoef(prediction.mean[0][inner].ravel(), wanted[inner].ravel())[0, 1] > 0.95


def shown(engine, stack, planes):
    statistics = engine.begin_statistics(stack.info)
    for z in planes:
        statistics.add(z, stack.pixels[z])
    return statistics


@pytest.mark.parametrize("planes", [(), (0, 1, 2), (2, 0), (1, 1, 0)])
def test_a_stack_that_was_looked_at_while_it_arrived_is_predicted_alike(planes):
    stack, engine = stack_of(culture((100, 130))), Predictor(MODEL, BlurNetwork())
    wanted = engine.predict(stack)
    got = engine.predict(stack, shown(engine, stack, planes))
    np.testing.assert_array_equal(got.mean, wanted.mean)


def test_planes_seen_as_they_came_are_not_looked_at_again():
    stack, engine = stack_of(culture((64, 64))), Predictor(MODEL, BlurNetwork())
    statistics, looked_at = shown(engine, stack, (0, 2)), []
    statistics.complete(stack, lambda work, numbers: looked_at.extend(numbers) or [work(z) for z in numbers])
    assert looked_at == [1]
    statistics.complete(stack, lambda work, numbers: looked_at.extend(numbers))
    assert looked_at == [1]


def test_what_is_refused_is_refused_however_it_arrived():
    stack, engine = stack_of(np.full((3, 64, 64), 100, np.uint16)), Predictor(MODEL, BlurNetwork())
    with pytest.raises(StackRefused, match="planes 1, 2, 3 constant"):
        engine.predict(stack, shown(engine, stack, (0, 1)))


def test_statistics_of_another_stack_are_refused():
    stack, engine = stack_of(culture((64, 64))), Predictor(MODEL, BlurNetwork())
    other = stack_of(culture((64, 64)), key=StackKey(7, "B2", "Phase"))
    with pytest.raises(EngineError, match="measured for stack B2 t7 Phase was handed over with A1 t0 Phase"):
        engine.predict(stack, engine.begin_statistics(other.info))


def test_answers_too_large_to_square_are_numbers_all_the_same():
    engine = Predictor(MODEL, BlurNetwork(lambda mean, spread: (mean * np.float32(1e30), spread)))
    assert engine.predict(stack_of(culture((64, 64)))).mean.max() > 1e29


def test_what_nobody_could_check_is_a_warning():
    stack = stack_of(culture((64, 64)), modality="unknown")
    assert "not checked" in Predictor(MODEL, BlurNetwork()).predict(stack).warnings[0]


@pytest.mark.parametrize("z_um", [(3.0,), (0.0, 4.0), (0.0, 1.0, 5.0), (0.0, 0.5, 3.0, 3.5, 7.0, 9.0)])
def test_a_model_for_any_planes_sees_those_of_a_stack_spread_over_its_own(z_um):
    manifest = MANIFEST.model_copy(update={"any_planes": AnyPlanes(most_step_um=5.0)})
    pixels = culture((64, 64), len(z_um))
    engine = Predictor(dataclasses.replace(MODEL, manifest=manifest), BlurNetwork())
    prediction = engine.predict(stack_of(pixels, z_um=z_um))
    order = tuple(reversed(range(len(z_um))))  # planes may come in any order
    turned = stack_of(pixels[list(order)], z_um=tuple(z_um[i] for i in order))
    np.testing.assert_array_equal(engine.predict(turned).mean, prediction.mean)
    spread = spread_by_hand(pixels, z_um, np.linspace(z_um[0], z_um[-1], 3))
    if len(z_um) > 1:  # one image at several heights is refused where it is said to be a stack
        fixed = Predictor(MODEL, BlurNetwork()).predict(stack_of(spread))
        np.testing.assert_allclose(fixed.mean, prediction.mean, atol=1e-3)
    assert prediction.mean.shape == (2, 64, 64) and prediction.mean.std() > 0.05


def spread_by_hand(pixels, z_um, spread):
    planes = pixels.reshape(len(z_um), -1).astype(np.float64)
    out = np.stack([np.interp(spread, z_um, column) for column in planes.T], axis=1)
    return np.rint(out).astype(np.uint16).reshape(3, *pixels.shape[1:])


def test_a_stack_that_does_not_fit_is_refused_before_the_network_runs():
    network = BlurNetwork()
    stack = stack_of(culture((64, 64)), pixel_size_um=0.1)
    with pytest.raises(StackRefused, match=r"A1 t0 Phase.*0.1 um.*to fix: use an objective or binning"):
        Predictor(MODEL, network).predict(stack)
    with pytest.raises(StackRefused, match=r"planes without any picture.*to fix: check that the shutter"):
        Predictor(MODEL, network).predict(stack_of(np.full((3, 64, 64), 100, np.uint16)))
    assert network.shapes == []


BAD_ANSWERS = [
    ("NaN in the mean", lambda mean, spread: (poisoned(mean, np.nan), spread), "NaN or infinity"),
    ("infinite spread", lambda mean, spread: (mean, poisoned(spread, np.inf)), "NaN or infinity"),
    ("minus infinity", lambda mean, spread: (poisoned(mean, -np.inf), spread), "NaN or infinity"),
    ("half of the field", lambda mean, spread: (mean[:, :, ::2], spread), "another shape"),
    ("a label too few", lambda mean, spread: (mean[:, :1], spread), "another shape"),
    ("doubles", lambda mean, spread: (mean.astype(float), spread), "another shape"),
]


def poisoned(values, poison):
    values = values.copy()
    values[-1, -1, 30, 40] = poison
    return values


@pytest.mark.parametrize("tile_px", [None, 64])
@pytest.mark.parametrize(("answer", "said"), [c[1:] for c in BAD_ANSWERS], ids=[c[0] for c in BAD_ANSWERS])
def test_nonsense_is_an_error_and_never_a_picture(answer, said, tile_px):
    engine = Predictor(MODEL, BlurNetwork(answer), tile_px=tile_px)
    with pytest.raises(EngineError, match=said):
        engine.predict(stack_of(culture((100, 100))))


def test_after_closing_there_is_no_prediction():
    with Predictor(MODEL, BlurNetwork()) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.predict(stack_of(culture((64, 64))))


def test_threads_may_share_a_predictor():
    stacks = [stack_of(culture((120, 120), seed=seed)) for seed in range(4)]
    engine = Predictor(MODEL, BlurNetwork(), tile_px=64)
    wanted = [engine.predict(stack).mean for stack in stacks]
    got = [None] * 4

    def work(index):
        got[index] = engine.predict(stacks[index]).mean

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(one, other)
