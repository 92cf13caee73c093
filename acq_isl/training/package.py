"""A trained network becomes a model file that says what it was trained on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from acq_isl.errors import ExperimentError
from acq_isl.manifest import Evaluation, Gate, Label, Manifest
from acq_isl.manifest import Training as TrainedOn
from acq_isl.stack import Counting, Uint16Image
from acq_isl.training.checkpoints import Tensors, write_tensors
from acq_isl.training.config import TrainConfig
from acq_isl.training.data.dataset import Field, Range
from acq_isl.training.data.geometry import Geometry, bring_to_model
from acq_isl.training.data.pairs import Item
from acq_isl.training.data.source_simulated import Pair
from acq_isl.training.data.splits import Division
from acq_isl.training.export.onnx import export_onnx
from acq_isl.training.network import Deployed, LiveNetwork
from acq_isl.training.ood_gate import WINDOW_PX, GateHead, fit_gate
from acq_isl.training.score import HeldOutScore, measure_halo, measure_margin

WEIGHTS = "weights.safetensors"
MODEL = "model.onnx"
_BORDER_PX = 384
_GATE_FIELDS, _GATE_PX = 32, 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a run has found."""

    network: LiveNetwork  # in evaluation mode, on the processor
    labels: tuple[Label, ...]
    ranges: tuple[Range, ...]
    """Tuple of (float, float); Per label, what in the training truth stood for 0 and 1."""
    scores: tuple[HeldOutScore, ...]
    seen: tuple[Field, ...]  # what it was trained on, from which the gate learns what is usual
    counts: tuple[Counting, ...] = ()
    """How objects are counted, of labels for which held-out fields could tell."""


def write_package(config: TrainConfig, division: Division, trained: Trained, folder: Path) -> Path:
    """Write ``model.onnx`` and, for adapting it, ``weights.safetensors``; returns the path of the model."""
    item = division.held_out[0]
    stack = _square(bring_to_model(item.load(), geometry_of(config), item.name).stack[:: config.every_plane])
    pair = Pair(stack, np.zeros((len(trained.labels), *stack.shape[1:]), np.uint8))
    halo_px, margin_px = measure_halo(trained.network, pair), measure_margin(trained.network, pair)
    manifest = manifest_of(config, division, trained, (halo_px, margin_px))
    write_weights(trained.network, manifest, folder / WEIGHTS)
    head, gate = _gate(trained)
    scale = tuple(one.scale for one in trained.scores)
    manifest = manifest.model_copy(update={"gate": gate})
    export_onnx(Deployed(trained.network, scale, head, manifest.spread_slope), manifest, folder / MODEL)
    return folder / MODEL


def _gate(trained: Trained) -> tuple[GateHead | None, Gate | None]:
    """Fitted to some of the fields that were trained on; none if they are too few or too small."""
    large = [field for field in trained.seen if min(field.y.shape[1:]) >= WINDOW_PX]
    chosen = large[:: max(len(large) // _GATE_FIELDS, 1)][:_GATE_FIELDS]
    step = trained.network.config.size_step_px
    side = _GATE_PX // step * step
    stacks = (torch.from_numpy(np.asarray(f.x[:, :side, :side]).astype(np.float32)) for f in chosen)
    try:
        return fit_gate(trained.network, stacks)
    except ExperimentError as error:
        logger.warning("the model has no gate: %s", error)
        return None, None


def write_weights(network: LiveNetwork, manifest: Manifest, path: Path) -> None:
    """The weights as trained, with what is needed to build their network."""
    about = {"network": json.dumps(asdict(network.config)), "manifest": manifest.model_dump_json()}
    write_tensors(path, Tensors(network.state_dict(), about))


def geometry_of(config: TrainConfig) -> Geometry:
    """What every field of a run is brought to."""
    names = tuple(label.name for label in config.labels)
    return Geometry(config.nominal, config.network.high_pass_px, names, config.network.size_step_px)


def manifest_of(
    config: TrainConfig, division: Division, trained: Trained, border_px: tuple[int, int]
) -> Manifest:
    """What the model file says about itself; ``border_px`` are halo and margin."""
    shown = range(config.planes)[:: config.every_plane]
    middle = (config.planes - 1) / 2
    step = config.network.size_step_px
    metrics: dict[str, float] = {}
    for one in (one for one in trained.scores if one.n):
        metrics[f"{division.title} pearson {one.label}"] = one.pearson
        metrics[f"{division.title} coverage of 1 SD {one.label}"] = one.coverage
    # What a simulation calls bright is no count of any camera.
    recorded = any(not item.simulated for item in division.train)
    labels = zip(trained.labels, trained.ranges if recorded else [None] * len(trained.labels), strict=True)
    return Manifest(
        name=config.name, version=config.version, licence=config.licence, description=config.description,
        modality=config.modality, polarity=config.polarity, pixel_size_um=config.pixel_size_um,
        z_offsets_um=tuple(config.z_step_um * (plane - middle) for plane in shown),
        any_planes=config.any_planes, high_pass_um=config.high_pass_um,
        labels=tuple(label.model_copy(update={"truth_range": span}) for label, span in labels),
        min_tile_px=8 * step, halo_px=border_px[0], margin_px=border_px[1], size_step_px=step,
        spread_scale=tuple(one.scale for one in trained.scores),
        spread_slope=tuple(one.slope for one in trained.scores),
        trained_on=trained_on(division), metrics=metrics, instrument=config.instrument,
        training=_training(config, division),
        evaluations=tuple(_evaluation(one, division) for one in trained.scores if one.n),
        counts=trained.counts,
    )  # fmt: skip


def _square(stack: Uint16Image) -> Uint16Image:
    """Mirrored or cut to a field that is large enough to see from how far away it is changed."""
    rows, columns = (max(_BORDER_PX - side, 0) for side in stack.shape[1:])
    wide = np.pad(stack, ((0, 0), (0, rows), (0, columns)), "symmetric")
    square: Uint16Image = wide[:, :_BORDER_PX, :_BORDER_PX]
    return square


def trained_on(division: Division) -> str:
    """One sentence for people."""
    recorded = [item for item in division.train if not item.simulated]
    simulated = len(division.train) - len(recorded)
    parts = []
    if recorded:
        unit = "block" if division.unit == "block of a field" else "field"
        wells = {item.well for item in recorded if item.well is not None}
        of = f" of {_count(len(wells), 'well')}" if wells else ""
        parts.append(f"{_count(len(recorded), f'recorded {unit}')}{of}")
    if simulated:
        parts.append(f"{_count(simulated, 'simulated field')}{'' if recorded else ', no recorded image'}")
    return " and ".join(parts)


def unit_of(item: Item, division: Division) -> str:
    """What a held-out field belongs to, by the unit of the split."""
    return item.well or item.name if division.unit == "well" else item.place


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _training(config: TrainConfig, division: Division) -> TrainedOn:
    recorded: Sequence[Item] = [item for item in division.train if not item.simulated]

    def names(values: Sequence[str | None]) -> tuple[str, ...]:
        return tuple(sorted({value for value in values if value}))

    return TrainedOn(
        cell_type=config.cell_type,
        plates=names([item.plate for item in recorded]),
        wells=names([item.well for item in recorded]),
        fields=names([item.place for item in recorded]),
        split_unit=division.unit,
        data_licence=config.data_licence,
    )


def _evaluation(one: HeldOutScore, division: Division) -> Evaluation:
    bright = {"truly": one.bright_coverage, "predicted": one.predicted_coverage}
    found = {f"where {which} bright": share for which, share in bright.items() if share is not None}
    return Evaluation(
        label=one.label,
        dataset=division.title,
        split_unit=division.unit,
        n=one.n,
        metrics={"pearson": one.pearson, "mae": one.mae, "coverage of 1 SD": one.coverage, **found},
    )
