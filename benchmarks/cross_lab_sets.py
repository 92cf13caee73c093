"""The sets of the cross-lab card: where each lies, its light, what is learned from and what is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from acq_isl.stack import Modality
from acq_isl.training.data.pairs import Nominal, Recording
from acq_isl.training.data.sources import Source

GAP_PX = 32
Measure = Literal["pixels", "total of each cell"]


@dataclass(frozen=True)
class LabSet:
    """A set of pairs. ``learned`` and ``judged`` are sources below ``folder``; where an image is the same in
    both, its columns up to ``cut_px`` are learned from and those beyond a gap are judged. ``pixel_size_um``
    is what files or notes say; None: nobody does, and ``nominal_um`` is what a model of its own is told."""

    name: str
    what: str
    folder: str
    light: Modality
    learned: Mapping[str, Any] = field(default_factory=dict)
    judged: Sequence[Mapping[str, Any]] = ()
    cut_px: int | None = None
    gap_px: int = GAP_PX
    pixel_size_um: float | None = None
    nominal_um: float = 0.1
    z_step_um: float = 1.5
    register: bool = False
    measure: Measure = "pixels"

    def recordings(self, data: Path, sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Recording]]:
        """By name, as the project's sources read them."""
        for source in sources:
            given = {"kind": "tiff", "pixel_size_um": self.pixel_size_um or self.nominal_um}
            given |= {"z_step_um": self.z_step_um, **source, "folder": data / self.folder}
            for item in TypeAdapter(Source).validate_python(given).items(Nominal(1, 0.1, 1.5)):
                yield item.name, item.load()

    def parts(self, data: Path) -> tuple[list[tuple[str, Recording]], list[tuple[str, Recording]]]:
        """What one image shows, and what is judged."""
        one = list(self.recordings(data, [self.learned]))
        if self.cut_px is None:
            return one, list(self.recordings(data, self.judged))
        first = self.cut_px + self.gap_px
        width = one[0][1].stack.shape[2]
        left = [(name, each.columns(0, self.cut_px)) for name, each in one]
        return left, [(name, each.columns(first, width)) for name, each in one]


def _pair(light: str, **labels: str) -> dict[str, Any]:
    return {"stack": light, "labels": labels}


_H9C2 = {
    n: _pair(f"transmitted/{n}_{{field}}.png", mitochondria=f"mitochondria/{n}_{{field}}.png") | {"plate": n}
    for n in ("009_t050_z005", "010", "011", "012")
}
_SAUREUS = _pair("phase.tif", membrane="membrane.tif", dna="dna.tif")
_YEAST = {
    "stack": {"file": "cerevisiae.tif", "plane": 0},
    "labels": {"FITC": {"file": "cerevisiae.tif", "plane": 1}},
}
_ECOLI = "ds1_{0}_brightfield.tif", "ds1_{0}_fluorescence.tif"
SETS = (
    LabSet("recorded", "human neurons, 13 planes", "isl_condition_b", "phase contrast",
           _pair("phase_contrast.ome.tif", nuclei="dapi.ome.tif", dendrites="map2.ome.tif",
                 axons="nfh.ome.tif"),
           cut_px=336, pixel_size_um=0.3),
    LabSet("mcf7", "MCF7 cells, one plane", "cross_lab/mcf7_bright_field", "brightfield",
           _pair("bright_field.ome.tif", nuclei="hoechst.ome.tif"), cut_px=160, pixel_size_um=0.3112),
    LabSet("h9c2", "H9C2 cells, one plane", "cross_lab/h9c2_mitochondria", "unknown",
           _H9C2["009_t050_z005"], [_H9C2[n] for n in ("010", "011", "012")]),
    LabSet("jurkat", "Jurkat cells in flow, one plane; total DNA of each cell", "cross_lab/jurkat_flow",
           "brightfield", _pair("{field}_brightfield.tif", dna="{field}_dna.tif"), cut_px=560, gap_px=80,
           nominal_um=0.3, measure="total of each cell"),
    LabSet("ecoli", "E. coli, one plane", "cross_lab/ecoli_bright_field", "brightfield",
           _pair(_ECOLI[0].format("00010"), cytosol=_ECOLI[1].format("00010")),
           [_pair(_ECOLI[0].format("0000{field}"), cytosol=_ECOLI[1].format("0000{field}"))]),
    LabSet("saureus", "S. aureus, one plane, stains shifted", "cross_lab/saureus_misregistered",
           "phase contrast", _SAUREUS, cut_px=672),
    LabSet("saureus, registered", "the same with --register", "cross_lab/saureus_misregistered",
           "phase contrast", _SAUREUS, cut_px=672, register=True),
    LabSet("yeast", "budding yeast, one plane", "cross_lab/yeast_dic", "DIC", _YEAST, cut_px=128,
           pixel_size_um=0.1083),
    LabSet("organoids", "mouse intestinal organoids, 11 planes, no stain", "cross_lab/organoid_stack",
           "brightfield", {"stack": "A01_zyx.tif", "labels": {"none": "no_such.tif"}}, pixel_size_um=4.323,
           z_step_um=200.6),
)  # fmt: skip
