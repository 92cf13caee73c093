"""Stacks that are no pictures are refused, and pictures never are."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from acq_isl.engines.image_quality import check_image_quality, largest_structure
from acq_isl.errors import StackRefused
from acq_isl.stack import StackInfo, StackKey, ZStack

FIELD = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_condition_b" / "phase_contrast.ome.tif"


def stack_of(pixels):
    pixels = np.asarray(pixels).astype(np.uint16)
    info = StackInfo(StackKey(2, "B3", "Phase"), tuple(map(float, range(len(pixels)))), pixels.shape[1:], 0.3)
    return ZStack(info, pixels, (0.0,) * len(pixels))


def culture(planes=5, side=192, level=20000, sd=800):
    noise = np.random.default_rng(0).normal(0, 1, (planes, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    return level + sd * (smooth / smooth.std() + 0.3 * noise)


def with_plane(index, plane):
    pixels = culture()
    pixels[index] = plane(pixels)
    return pixels


RNG = np.random.default_rng(1)
NO_PICTURES = [
    ("dark", np.zeros((5, 96, 96)), "planes 1, 2, 3, ... constant at 0 counts.*shutter opens"),
    ("constant", np.full((5, 96, 96), 100), "constant at 100 counts.*light reaches the camera"),
    ("white", np.full((5, 96, 96), 65535), "constant at 65535 counts"),
    ("one dark slice", with_plane(2, lambda p: 0 * p[0]), "plane 3 constant at 0"),
    ("overexposed", culture(level=65000), "clipped.*brightest value, 65535.*shorten the exposure"),
    ("overexposed at 12 bits", np.minimum(culture(level=4000), 4095), "brightest value, 4095 counts"),
    ("offset too low", np.maximum(culture(level=300), 0), "darkest value, 0 counts.*lengthen the exposure"),
    ("one slice twice", with_plane(3, lambda p: p[2]), "plane 4 equal to the one before.*focus drive moves"),
    (
        "a stuck focus",
        culture(1).repeat(5, 0) + RNG.normal(0, 80, (5, 192, 192)),
        "same plane at every z.*drive moves",
    ),
    ("a stuck camera", np.repeat(culture(1), 5, 0), "planes 2, 3, 4, ... equal"),
    ("shutter closed, read noise", RNG.normal(100, 1.6, (5, 256, 256)), "camera noise only"),
    ("empty medium, shot noise", RNG.poisson(20000, (5, 256, 256)), "camera noise only.*nothing is wrong"),
    (
        "empty medium, uneven light",
        RNG.poisson(np.broadcast_to(np.linspace(9000, 30000, 256), (5, 256, 256))),
        "camera noise only",
    ),
]


@pytest.mark.parametrize(("pixels", "said"), [c[1:] for c in NO_PICTURES], ids=[c[0] for c in NO_PICTURES])
def test_what_is_no_picture_is_refused_with_the_fix(pixels, said):
    pixels = np.clip(np.rint(pixels), 0, 65535)
    with pytest.raises(StackRefused, match=said) as caught:
        check_image_quality(stack_of(pixels))
    assert "B3 t2 Phase" in str(caught.value) and caught.value.fix


def one_cell_in_an_empty_field():
    y, x = np.mgrid[:512, :512]
    cell = np.exp(-((y - 300) ** 2 + (x - 190) ** 2) / (2 * 8**2)) * np.sin(x / 3)
    return RNG.normal(3000, 50, (5, 512, 512)) + 400 * cell


PICTURES = [
    ("culture", culture()),
    ("faint: eight grey levels", np.rint(culture(level=100, sd=2))),
    ("8 bits", culture(level=128, sd=20)),
    ("noisy", culture() + RNG.normal(0, 800, (5, 192, 192))),
    ("inverted", 65535 - culture()),
    ("one cell in an empty field", one_cell_in_an_empty_field()),
    ("one plane", culture(1)),
    ("a few dead and a few hot pixels", np.where(RNG.random((5, 192, 192)) < 1e-4, 65535, culture())),
    ("too small to tell noise", RNG.normal(1000, 50, (5, 20, 20))),
    ("two pixels", np.array([[[1, 2]], [[5, 9]]])),
]


@pytest.mark.parametrize("pixels", [c[1] for c in PICTURES], ids=[c[0] for c in PICTURES])
def test_a_picture_is_not_refused(pixels):
    check_image_quality(stack_of(np.clip(np.rint(pixels), 0, 65535)))


def test_structure_does_not_depend_on_gain_offset_or_noise_level():
    for counts in (3, 100, 20000):
        noise = RNG.poisson(counts, (512, 512)).astype(np.uint16)
        assert largest_structure(noise) < 0.12
    plane = culture(1)[0].astype(np.uint16)
    assert largest_structure(plane) > 0.5
    assert largest_structure((plane // 2 + 7).astype(np.uint16)) == pytest.approx(
        largest_structure(plane), abs=0.01
    )


@pytest.mark.skipif(not FIELD.exists(), reason=f"needs {FIELD}")
def test_the_recorded_field_and_any_part_of_it_is_a_picture():
    field = tifffile.imread(FIELD)
    check_image_quality(stack_of(field))
    for y in range(0, 1024 - 255, 256):
        for x in range(0, 704 - 255, 224):
            check_image_quality(stack_of(field[:, y : y + 256, x : x + 256]))
