"""A file format: a NumPy archive (.npz) of one channel, with pixels, heights and pixel size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers import DataSet, Lengths, RecordedChannel, RecordedField


class NumpyArchiveReader:
    """Has the members of `acq_isl.readers.Reader`."""

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".npz"

    def read(self, path: Path) -> DataSet:
        try:
            with np.load(path, allow_pickle=False) as archive:
                pixels, z_um = archive["pixels"], tuple(archive["z_um"].tolist())
                pixel_size_um = float(archive["pixel_size_um"])
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise StorageError(
                f"{path} is no stack",
                wanted="arrays named pixels (z, y, x), z_um (z,) and pixel_size_um",
                got=str(error),
            ) from error

        def read_planes(numbers: Sequence[int]) -> np.ndarray:
            return pixels[list(numbers)]

        def open_channel(number: int) -> RecordedChannel:
            lengths = Lengths(pixel_size_um)
            return RecordedChannel(str(path), "Phase", pixels.shape, pixels.dtype, lengths, z_um, read_planes)

        field = RecordedField(path, path.stem, ("Phase",), open_channel, (path,))
        return DataSet(path, "a NumPy archive", (field,))
