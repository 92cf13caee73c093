"""Images of NDTiff files are found by their own headers, whatever of file and index is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acq_isl.readers.ndtiff import INDEX
from acq_isl.readers.ndtiff_headers import all_images

PLANES = 5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ndstorage.ndtiff_dataset import NDTiffDataset

    dataset = NDTiffDataset(str(tmp_path_factory.mktemp("data")), name="m", writable=True)
    dataset.initialize({"a": "summary"})
    for z in range(PLANES):
        axes = {"position": "A1", "z": z}
        dataset.put_image(axes, np.full((7, 9), z + 1, np.uint16), {"Axes": axes, "odd": "x" * z})
    dataset.finish()
    dataset.close()
    return Path(dataset.path)


def test_headers_say_what_the_index_says(recorded: Path, tmp_path: Path) -> None:
    (file,) = recorded.glob("*.tif")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    for with_index, without in zip(all_images(recorded), all_images(tmp_path), strict=True):
        assert with_index.axes == without.axes and with_index.metadata() == without.metadata()
        np.testing.assert_array_equal(with_index.read(), without.read())
        assert without.read().dtype == np.uint16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(share=st.floats(0, 1), noise=st.booleans(), cut_index=st.floats(0, 1))
def test_of_a_file_that_was_cut_off_the_whole_images_are_found(
    recorded: Path, tmp_path: Path, share: float, noise: bool, cut_index: float
) -> None:
    (file,) = recorded.glob("*.tif")
    content, index = file.read_bytes(), (recorded / INDEX).read_bytes()
    left = content[: round(share * len(content))]
    # What a file system had set aside for the file and never wrote reads as zeros.
    (tmp_path / file.name).write_bytes(left + bytes(len(content) - len(left)) * noise)
    (tmp_path / INDEX).unlink(missing_ok=True)
    found = [image for image in all_images(tmp_path) if noise is False or image.read().any()]
    assert [image.z for image in found] == list(range(len(found)))
    for image in found:
        assert image.read().max() == image.z + 1
    if share == 1:
        assert len(found) == PLANES
        (tmp_path / INDEX).write_bytes(index[: round(cut_index * len(index))])
        assert {image.z for image in all_images(tmp_path)} == set(range(PLANES))
