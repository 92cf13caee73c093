"""The published TensorFlow checkpoint becomes a model file that any engine runs.

The public archive is ``gs://in-silico-labeling/checkpoints.zip`` (google/in-silico-labeling); unpack it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acq_isl.errors import ModelError
from acq_isl.files import write_whole
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.stack import Modality, Polarity
from acq_isl.training.reference.dense import DenseSpec, Form, Shown, build_dense
from acq_isl.training.reference.load import choose_heads, load_variables, reference_config
from acq_isl.training.reference.network import STRIDE_PX, TARGETS, ReferenceConfig
from acq_isl.training.reference.tf_checkpoint import Checkpoint

_FULL_SCALE = (0.0, 65535.0)
_LABELS: Mapping[str, tuple[str, str, str]] = {  # name, marker, display hue
    "DAPI_CONFOCAL": ("nuclei", "DAPI or Hoechst, confocal", "#56b4e9"),
    "DAPI_WIDEFIELD": ("nuclei (wide field)", "Hoechst, wide field", "#0072b2"),
    "CELLMASK_CONFOCAL": ("cell membranes", "CellMask", "#cc79a7"),
    "TUJ1_WIDEFIELD": ("neurons", "TuJ1", "#009e73"),
    "NFH_CONFOCAL": ("axons", "NFH", "#e69f00"),
    "MAP2_CONFOCAL": ("dendrites", "MAP2", "#009e73"),
    "ISLET_WIDEFIELD": ("motor neurons", "Islet1", "#f0e442"),
    "DEAD_CONFOCAL": ("dead cells", "propidium iodide", "#d55e00"),
    "NEURITE_CONFOCAL": ("neurites", "mean of NFH and MAP2", "#ffffff"),
}
_UNKNOWN = ("DAPI_CONFOCAL",)  # of the published data, from both kinds of specimen
_LIVE = ("DEAD_CONFOCAL",)


@dataclass(frozen=True, slots=True)
class Optics:
    """What the stacks will look like, as in `acq_isl.stack.StackInfo`; the checkpoint does not say.

    Pixels are .3 um for the paper's phase contrast, .5 for its bright field, .4 for its DIC. Planes,
    relative to the middle of the stack, are 13 as published, for DIC 26, at an unknown distance. The
    high-pass is the sigma of the background that the model subtracts from raw counts; 0 for stacks that are
    already flat with mean .5 and SD .125 of the 16-bit range, as the paper's data are.
    """

    modality: Modality
    polarity: Polarity
    pixel_size_um: float
    z_offsets_um: tuple[float, ...]
    high_pass_um: float = 6.0

    def __post_init__(self) -> None:
        steps = np.diff(self.z_offsets_um)
        if not (
            self.pixel_size_um > 0 and self.high_pass_um >= 0 and self.z_offsets_um and (steps > 0).all()
        ):
            raise ModelError(
                "the optics of a model do not make sense",
                wanted="a pixel size above 0, a high-pass from 0, and planes in rising order",
                got=str(self),
                fix="state what the stacks will look like",
            )


def import_reference(
    path: Path | str,
    out: Path | str,
    optics: Optics,
    *,
    heads: Iterable[str] | None = None,
    form: Form = "exact",
    statistic: Shown = "median",
) -> Manifest:
    """Write a checkpoint (its folder, ``.index`` file or prefix) as an ONNX model with our manifest.

    ``heads`` are labels to keep, such as ``DAPI_CONFOCAL``; if not given the nine labels, without the planes.
    ``statistic`` is what is shown of each pixel's distribution; the file also holds the other one, SD and
    entropy. `ModelError` if the checkpoint cannot be used, or there is no such label; says what to do.
    """
    checkpoint = Checkpoint.open(path)
    config = reference_config(checkpoint)
    targets = [head for head in config.heads if head.startswith("MAXPROJECT/")]
    config = replace(config, heads=choose_heads(config.heads, targets if heads is None else heads))
    high_pass_px = optics.high_pass_um / optics.pixel_size_um
    spec = DenseSpec(config.heads, len(optics.z_offsets_um), form, high_pass_px, shown=statistic)
    manifest = _manifest(config, spec, optics, checkpoint)
    values = load_variables(checkpoint, config)
    model = build_dense(values, config.base_depth, spec, {MANIFEST_KEY: manifest.model_dump_json()})
    try:
        write_whole(Path(out), model.SerializeToString())
    except OSError as error:
        raise ModelError(
            f"the model cannot be written to {out}",
            wanted="a folder that exists, may be written to, and has room",
            got=str(error),
            fix="choose another place",
        ) from error
    return manifest


def _manifest(config: ReferenceConfig, spec: DenseSpec, optics: Optics, checkpoint: Checkpoint) -> Manifest:
    step = ""
    if "global_step" in checkpoint.entries:
        step = f" at step {int(checkpoint.read('global_step').reshape(-1)[0])}"
    return Manifest(
        name="isl-reference" + ("" if spec.form == "exact" else "-single-phase"),
        version="1",
        licence="code Apache-2.0 (google/in-silico-labeling); weights: ask who made the checkpoint",
        description=f"The published in-silico-labelling network (Christiansen et al. 2018), {spec.form} form",
        modality=optics.modality,
        polarity=optics.polarity,
        pixel_size_um=optics.pixel_size_um,
        z_offsets_um=optics.z_offsets_um,
        high_pass_um=optics.high_pass_um,
        labels=tuple(_label(head) for head in config.heads),
        min_tile_px=spec.min_tile_px,
        halo_px=spec.halo_px,
        size_step_px=STRIDE_PX,
        max_tile_px=spec.max_tile_px,
        blank_px=spec.halo_px,
        statistic=spec.shown,
        trained_on=f"TensorFlow checkpoint {checkpoint.prefix.name}{step}",
    )


def _label(head: str) -> Label:
    target = head.rsplit("/", maxsplit=1)[-1]
    if target not in TARGETS:
        return Label(name=f"transmitted light at z {head.split('/', maxsplit=1)[0]}", marker="none")
    name, marker, color = _LABELS[target]
    return Label(
        name=name,
        marker=marker,
        color=color,
        specimen="unknown" if target in _UNKNOWN else "live" if target in _LIVE else "fixed",
        projection="maximum over z",
        truth_range=_FULL_SCALE,
    )
