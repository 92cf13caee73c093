"""The public sample: fetched from a server of our own, held against what was published."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from acq_isl.errors import StorageError
from acq_isl.readers.sample import _FIELD, fetch_condition_b
from acq_isl.stack import Uint16Image


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Requests are no business of the tests' output."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Address and folder of a file server on this computer, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def publish(folder: Path, stack: Uint16Image, stains: dict[str, Uint16Image]) -> None:
    """As the published files: one 16-bit PNG an image."""
    planes = {
        _FIELD.format(depth=f"z_depth-{z}", channel="PHASE_CONTRAST"): plane for z, plane in enumerate(stack)
    }
    labels = {
        _FIELD.format(depth="depth_computation-MAXPROJECT", channel=f"{stain}_CONFOCAL"): image
        for stain, image in stains.items()
    }
    for name, image in (planes | labels).items():
        wide = np.pad(image, ((0, 0), (0, 320)), mode="reflect")  # the published field goes on to the right
        Image.fromarray(wide).save(folder / name)


def test_what_was_published_becomes_ome_tiff(
    mirror: tuple[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    address, folder = mirror
    recorded = shared_data / "isl_condition_b"
    stack = tifffile.imread(recorded / "phase_contrast.ome.tif")
    stains = {name: tifffile.imread(recorded / f"{name.lower()}.ome.tif") for name in ("DAPI", "MAP2", "NFH")}
    publish(folder, stack, stains)
    written = fetch_condition_b(tmp_path / "out", address)
    assert [path.name for path in written] == [
        f"{name}.ome.tif" for name in ("phase_contrast", "dapi", "map2", "nfh")
    ]
    assert np.array_equal(tifffile.imread(written[0])[:, :, :704], stack)
    assert np.array_equal(tifffile.imread(written[1])[:, :704], stains["DAPI"])
    for path in folder.iterdir():
        path.unlink()
    assert fetch_condition_b(tmp_path / "again", address), "from the cache, without the server's files"


@pytest.mark.parametrize("kind", ["other pixels", "8 bits", "no picture", "cut off"])
def test_other_files_are_refused_and_nothing_is_written(
    mirror: tuple[str, Path], tmp_path: Path, kind: str
) -> None:
    address, folder = mirror
    path = folder / _FIELD.format(depth="z_depth-0", channel="PHASE_CONTRAST")
    Image.fromarray(np.zeros((64, 704), np.uint8 if kind == "8 bits" else np.uint16)).save(path, format="PNG")
    if kind == "no picture":
        path.write_bytes(b"<html>")
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StorageError, match="is not what was published"):
        fetch_condition_b(tmp_path / "out", address)
    assert not (tmp_path / "out").exists()
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()], "nor kept"


def test_a_server_that_has_it_not_is_named(mirror: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be fetched") as raised:
        fetch_condition_b(tmp_path / "out", mirror[0])
    assert "--source" in str(raised.value)
