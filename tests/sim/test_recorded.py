"""A recorded field as a specimen without end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import StorageError
from acq_isl.sim.specimen.recorded import RecordedLabel, RecordedSpecimen, mirror_runs
from acq_isl.sim.view import View

FIELD = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_condition_b"
PIXEL_UM = 0.3
RNG = np.random.default_rng(5)
STACK = RNG.integers(0, 65536, (5, 40, 60), dtype=np.uint16)
NUCLEI = RNG.integers(0, 65536, (40, 60), dtype=np.uint16)
SPECIMEN = RecordedSpecimen(STACK, {"nuclei": RecordedLabel("DAPI", NUCLEI)}, PIXEL_UM, 2.0)
WHOLE = View(x_um=0, y_um=0, z_um=0, channel="Phase", pixel_size_um=PIXEL_UM, shape=(40, 60))


def counts(light: np.ndarray) -> np.ndarray:
    assert light.dtype == np.float32
    return np.rint(light * 65535).astype(int)


def smooth_specimen() -> RecordedSpecimen:
    """A field that interpolation cannot spoil: a slow wave in x and y."""
    y, x = np.mgrid[:200, :200]
    wave = 30000 + 10000 * np.sin(x / 15) + 10000 * np.cos(y / 20)
    return RecordedSpecimen(np.stack([wave] * 3).astype(np.uint16), {}, PIXEL_UM)


# the mirrored field


@given(start=st.integers(-500, 500), length=st.integers(0, 200), size=st.integers(1, 50))
def test_mirror_runs_are_numpys_symmetric_padding(start: int, length: int, size: int) -> None:
    axis = np.arange(size)
    got = np.full(length, -1)
    for target, source in mirror_runs(start, length, size):
        got[target] = axis[source]
    padded = np.pad(axis, (600, 800), mode="symmetric")
    np.testing.assert_array_equal(got, padded[600 + start : 600 + start + length])


@given(rows=st.integers(-300, 300), columns=st.integers(-300, 300))
def test_moving_by_whole_pixels_copies_pixels(rows: int, columns: int) -> None:
    view = replace(WHOLE, x_um=columns * PIXEL_UM, y_um=rows * PIXEL_UM, shape=(11, 13))
    padded = np.pad(STACK[2], 400, mode="symmetric")
    top, left = 400 + rows + 20 - 5, 400 + columns + 30 - 6
    # An odd shape has its middle between pixels; either neighbour is the nearest grid place.
    close = [padded[top - r : top - r + 11, left - c : left - c + 13] for r in (0, 1) for c in (0, 1)]
    got = counts(SPECIMEN.render(view))
    assert any(np.array_equal(got, wanted) for wanted in close)


@given(shift=st.floats(-0.49, 0.49))
def test_places_between_pixels_snap_and_keep_the_noise(shift: float) -> None:
    view = replace(WHOLE, x_um=(7 + shift) * PIXEL_UM, y_um=(-3 + shift) * PIXEL_UM, shape=(20, 20))
    np.testing.assert_array_equal(counts(SPECIMEN.render(view)), STACK[2, 7:27, 27:47])


def test_no_edge_is_visible_where_the_field_repeats() -> None:
    specimen = smooth_specimen()
    view = replace(WHOLE, x_um=200 * PIXEL_UM / 2, y_um=200 * PIXEL_UM / 2, shape=(300, 300))
    light = specimen.render(view)
    inside = np.abs(np.diff(specimen.render(replace(view, x_um=0, y_um=0, shape=(200, 200))))).max()
    for axis in (0, 1):
        assert np.abs(np.diff(light, axis=axis)).max() <= inside * 1.5


# focus


@pytest.mark.parametrize("plane", range(5))
def test_recorded_planes_come_back_as_recorded(plane: int) -> None:
    view = replace(WHOLE, z_um=SPECIMEN.planes_z_um[plane])
    np.testing.assert_array_equal(counts(SPECIMEN.render(view)), STACK[plane])


def test_the_middle_plane_lies_at_zero() -> None:
    assert SPECIMEN.planes_z_um == (-4.0, -2.0, 0.0, 2.0, 4.0)


@given(z_um=st.floats(-4, 4))
def test_between_planes_light_is_linear_in_z(z_um: float) -> None:
    below = min(int(z_um / 2 + 2), 3)
    part = z_um / 2 + 2 - below
    wanted = STACK[below] * (1 - part) + STACK[below + 1] * part
    np.testing.assert_allclose(
        SPECIMEN.render(replace(WHOLE, z_um=z_um)) * 65535, wanted, atol=0.001 * 65535 + 1
    )


@pytest.mark.parametrize("z_um, plane", [(-300.0, 0), (-4.1, 0), (4.1, 4), (300.0, 4)])
def test_beyond_the_ends_the_last_plane_stays(z_um: float, plane: int) -> None:
    np.testing.assert_array_equal(counts(SPECIMEN.render(replace(WHOLE, z_um=z_um))), STACK[plane])


# magnification


@pytest.mark.parametrize("binning", [2, 4])
def test_larger_pixels_are_the_mean_of_what_they_cover(binning: int) -> None:
    shape = (40 // binning, 60 // binning)
    view = replace(WHOLE, pixel_size_um=PIXEL_UM * binning, shape=shape, binning=binning)
    blocks = STACK[2].reshape(shape[0], binning, shape[1], binning).mean(axis=(1, 3))
    np.testing.assert_allclose(SPECIMEN.render(view) * 65535, blocks, atol=0.1)


@pytest.mark.parametrize("pixel_size_um", [0.15, 0.2, 0.325, 0.5, 0.6])
def test_other_pixel_sizes_show_the_same_scene(pixel_size_um: float) -> None:
    specimen = smooth_specimen()
    view = replace(WHOLE, x_um=3.1, y_um=-2.3, pixel_size_um=pixel_size_um, shape=(50, 70))
    light = specimen.render(view)
    rows = (np.arange(50) - 24.5) * pixel_size_um - 2.3
    columns = (np.arange(70) - 34.5) * pixel_size_um + 3.1
    wave = np.sin((columns / PIXEL_UM + 99.5) / 15) + np.cos((rows[:, None] / PIXEL_UM + 99.5) / 20)
    # Whole multiples snap to the recorded pixels, so half a pixel of the steepest slope is allowed.
    np.testing.assert_allclose(light * 65535, 30000 + 10000 * wave, atol=450)


def test_what_lies_between_pixels_moves_with_the_stage() -> None:
    """At another pixel size a quarter of a pixel of travel shows."""
    view = replace(WHOLE, pixel_size_um=0.2)
    still, moved = (SPECIMEN.render(replace(view, x_um=x_um)) for x_um in (0.0, 0.05))
    assert np.abs(still - moved).mean() > 0.01


# labels


def test_a_label_channel_shows_the_label_at_every_z() -> None:
    for z_um in (-300.0, 0.7, 4.0):
        view = replace(WHOLE, channel="DAPI", z_um=z_um)
        np.testing.assert_array_equal(counts(SPECIMEN.render(view)), NUCLEI)


def test_truth_is_the_label_under_the_view() -> None:
    truth = SPECIMEN.truth(replace(WHOLE, x_um=3.0, shape=(40, 30)))
    assert list(truth) == ["nuclei"]
    np.testing.assert_array_equal(counts(truth["nuclei"]), NUCLEI[:, 25:55])


def test_an_unknown_channel_is_dark() -> None:
    assert not SPECIMEN.render(replace(WHOLE, channel="Cy5")).any()


def test_channels_begin_with_transmitted_light() -> None:
    assert SPECIMEN.channels == ("Phase", "DAPI")


def test_eight_bit_recordings_use_their_own_full_scale() -> None:
    specimen = RecordedSpecimen(np.full((3, 8, 8), 255, np.uint8), {}, PIXEL_UM)
    assert np.all(specimen.render(replace(WHOLE, shape=(8, 8))) == 1.0)


def test_the_recording_brings_a_camera_that_adds_no_noise() -> None:
    assert not SPECIMEN.camera.shot_noise
    assert SPECIMEN.camera.read_noise_e == SPECIMEN.camera.offset_e == 0


# files


def write(folder: Path, **changes: np.ndarray) -> dict[str, Path]:
    images = {"stack": STACK, "nuclei": NUCLEI, **changes}
    paths = {name: folder / f"{name}.ome.tif" for name in images}
    for name, pixels in images.items():
        metadata = {"axes": "ZYX"[-pixels.ndim :], "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}
        metadata |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 800.0}
        metadata |= {"PhysicalSizeZUnit": "nm"}
        tifffile.imwrite(paths[name], pixels, ome=True, metadata=metadata, compression="zlib")
    return paths


def read(paths: dict[str, Path]) -> RecordedSpecimen:
    return RecordedSpecimen.from_tiff(paths["stack"], {"nuclei": ("DAPI", paths["nuclei"])})


def test_files_and_their_metadata(tmp_path: Path) -> None:
    specimen = read(write(tmp_path))
    np.testing.assert_array_equal(specimen.transmitted, STACK)
    np.testing.assert_array_equal(specimen.labels["nuclei"].pixels, NUCLEI)
    assert specimen.pixel_size_um == pytest.approx(0.3)
    assert specimen.z_step_um == pytest.approx(0.8)


def test_given_lengths_win_over_metadata(tmp_path: Path) -> None:
    specimen = RecordedSpecimen.from_tiff(write(tmp_path)["stack"], {}, pixel_size_um=0.65, z_step_um=0.29)
    assert (specimen.pixel_size_um, specimen.z_step_um) == (0.65, 0.29)


def test_a_label_may_be_a_stack_of_one_plane(tmp_path: Path) -> None:
    paths = write(tmp_path)
    tifffile.imwrite(paths["nuclei"], NUCLEI[None], photometric="minisblack")
    assert read(paths).labels["nuclei"].pixels.shape == (40, 60)


def test_a_plain_tiff_needs_a_pixel_size_and_a_z_step(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack")
    with pytest.raises(StorageError, match="pixel_size_um"):
        RecordedSpecimen.from_tiff(path, {})
    with pytest.raises(StorageError, match="z_step_um"):
        RecordedSpecimen.from_tiff(path, {}, pixel_size_um=0.3)
    assert RecordedSpecimen.from_tiff(path, {}, pixel_size_um=0.3, z_step_um=2).z_step_um == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stack": STACK[0]}, "transmitted stack has the wrong shape"),
        ({"nuclei": STACK}, "label 'nuclei' has the wrong shape"),
        ({"nuclei": NUCLEI[:-1]}, "do not have the same size"),
        ({"stack": STACK.astype(np.float32)}, "wrong pixel type"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        read(write(tmp_path, **changes))
    assert caught.value.wanted and caught.value.got and caught.value.fix


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_short_is_an_error_not_black_planes(tmp_path: Path, kept: float) -> None:
    paths = write(tmp_path)
    content = paths["stack"].read_bytes()
    paths["stack"].write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(StorageError, match=r"stack\.ome\.tif"):
        read(paths)


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"not a picture at all", b"\x89PNG\r\n\x1a\n" + bytes(64)]
)
def test_what_is_not_a_tiff_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stack.tif"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read as a TIFF"):
        RecordedSpecimen.from_tiff(path, {})


def test_a_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no file .*phase_contrast\.ome\.tif"):
        RecordedSpecimen.from_folder(tmp_path / "nowhere")


def test_two_images_in_one_channel_are_refused() -> None:
    with pytest.raises(StorageError, match="share a channel"):
        RecordedSpecimen(STACK, {"nuclei": RecordedLabel("Phase", NUCLEI)}, PIXEL_UM)


@pytest.mark.parametrize(
    "lengths", [{"pixel_size_um": 0.0}, {"z_step_um": -1.0}, {"z_step_um": float("nan")}]
)
def test_lengths_must_be_lengths(lengths: dict[str, float]) -> None:
    with pytest.raises(StorageError, match="not a length"):
        RecordedSpecimen(STACK, {}, **({"pixel_size_um": PIXEL_UM} | lengths))


def test_a_unit_that_is_no_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stack.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}
    tifffile.imwrite(path, STACK, ome=True, metadata=metadata)
    with pytest.raises(StorageError, match=r"pixel size .* not known.*along x 1.0 pixel"):
        RecordedSpecimen.from_tiff(path, {})


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stack.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.4}
    tifffile.imwrite(path, STACK, ome=True, metadata=metadata)
    with pytest.raises(StorageError, match="not square"):
        RecordedSpecimen.from_tiff(path, {})


def test_damaged_pixels_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path)["stack"]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read as a TIFF"):
        RecordedSpecimen.from_tiff(path, {})


# the real field


@pytest.mark.skipif(not FIELD.is_dir(), reason="shared/data/isl_condition_b is not here")
def test_the_real_field() -> None:
    specimen = RecordedSpecimen.from_folder(FIELD)
    assert specimen.channels == ("Phase", "DAPI", "MAP2", "NFH")
    assert tuple(specimen.labels) == ("nuclei", "dendrites", "axons")
    assert specimen.pixel_size_um == pytest.approx(0.3)
    assert specimen.transmitted.shape == (13, 1024, 704)
    view = replace(WHOLE, shape=(1024, 704), z_um=specimen.planes_z_um[3])
    np.testing.assert_array_equal(counts(specimen.render(view)), specimen.transmitted[3])
