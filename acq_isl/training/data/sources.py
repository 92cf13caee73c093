"""Where training pairs come from: one kind of source for each way in which people keep them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.training.data.pairs import Item, Recording, as_counts
from acq_isl.training.data.source_base import Nominal, RecordedSource, stamp
from acq_isl.training.data.source_ndtiff import NdtiffSource
from acq_isl.training.data.source_png import LABELS, PngField, find_fields, read_png
from acq_isl.training.data.source_simulated import LABELS as SIMULATED_LABELS
from acq_isl.training.data.source_simulated import SimulationConfig, simulate
from acq_isl.training.data.source_tiff import TiffSource
from acq_isl.training.data.source_zarr import ZarrSource


class SimulatedSource(StrictModel):
    """Fields of the simulated microscope, each of another specimen."""

    kind: Literal["simulated"]
    simulation: SimulationConfig = SimulationConfig()

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """The fields to train on."""
        return self._items(nominal, range(self.simulation.fields))

    def held_out_items(self, nominal: Nominal) -> Iterator[Item]:
        """Fields of other specimens, for validation where nothing was recorded."""
        first = self.simulation.fields
        return self._items(nominal, range(first, first + self.simulation.held_out))

    def _items(self, nominal: Nominal, indices: range) -> Iterator[Item]:
        for index in indices:
            name = f"simulated {self.simulation.seed}/{index}"
            yield Item(
                name=name,
                well=name,
                stamp=stamp((), asdict(self.simulation), index),
                load=_Simulate(self.simulation, index, nominal),
                simulated=True,
                labels=SIMULATED_LABELS,
            )


@dataclass(frozen=True, slots=True)
class _Simulate:
    config: SimulationConfig
    index: int
    nominal: Nominal

    def __call__(self) -> Recording:
        pair = simulate(self.config, self.index)
        labels = dict(zip(SIMULATED_LABELS, pair.labels, strict=True))
        # Pixel size and z step vary about the nominal ones on purpose, and nothing is resampled.
        return Recording(
            pair.stack, labels, self.nominal.pixel_size_um, self.nominal.z_step_um, truth_range=(0.0, 255.0)
        )


class GooglePngSource(RecordedSource):
    """Folders of the In Silico Labeling data set; predictions in them are left alone."""

    kind: Literal["google_png"]
    folder: Path
    labels: dict[str, str] = Field(default_factory=lambda: {v: k for k, v in reversed(tuple(LABELS.items()))})
    """Channel by label name; a channel that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All fields of view below the folder."""
        del nominal
        for one in find_fields(self.folder):
            plate = self.plate or one.name["condition"] or one.folder.name
            source = self.model_copy(update={"plate": plate})
            labels = tuple(name for name, channel in self.labels.items() if channel in one.labels)
            well = one.name["well"] or self.well
            rest = [v for k, v in one.name.field if k in ("site", "field", "time_point", "tile")]
            yield Item(
                name=source.name(well, " ".join(rest)) or str(one.folder),
                well=source.place(well),
                stamp=stamp(one.files, self.model_dump(mode="json")),
                load=_LoadPng(self, one, labels),
                labels=labels,
                plate=plate,
            )


@dataclass(frozen=True, slots=True)
class _LoadPng:
    source: GooglePngSource
    field: PngField
    labels: tuple[str, ...]

    def __call__(self) -> Recording:
        one, what = self.field, f"{self.field.folder} {self.field.name['well'] or ''}".strip()
        stack = as_counts(np.stack([read_png(path) for path in one.planes]), what)
        channels = {name: self.source.labels[name] for name in self.labels}
        images = {name: read_png(one.labels[channel]) for name, channel in channels.items()}
        valid = {
            name: read_png(one.masks[channel]) > 0
            for name, channel in channels.items()
            if channel in one.masks
        }
        lengths = self.source.lengths(what, len(stack), (one.pixel_size_um, None))
        return Recording(stack, images, *lengths, valid=valid)


Source = Annotated[
    SimulatedSource | TiffSource | NdtiffSource | ZarrSource | GooglePngSource, Field(discriminator="kind")
]
