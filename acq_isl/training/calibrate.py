"""What a model file says of its own doubt, fitted again to simulated fields: ``MODEL`` in, ``MODEL`` out.

    python -m acq_isl.training.calibrate MODEL.onnx [--fields 64] [--keep-counts] [--out OTHER.onnx]

Weights and predicted means stay as they are, to the bit. The fields are those of the simulated microscope,
each of another culture that no model was trained on. So this is for models of simulated light; training
and adapting fit counts to their own held-out fields.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import ModelError, StorageError
from acq_isl.files import write_whole
from acq_isl.manifest import MANIFEST_KEY, Evaluation, Manifest
from acq_isl.stack import Float32Image, NetworkLabel, Prediction, StackInfo, StackKey, ZStack
from acq_isl.training.counts import CountedField, fit_counts
from acq_isl.training.data.source_simulated import LABELS, SimulationConfig, simulate
from acq_isl.training.doubt_head import SCALE, SLOPE, without_floor
from acq_isl.training.score import BrightFit, PixelSums, calibrate_bright

_SEED = 77
_FIELDS, _SIDE_PX = 64, 512
_NO_FLOOR = "before its floor: "
_DATASET = "simulated microscope, fitted"
_JUDGED_ON = "fields of other cultures on the simulated microscope; true is what their true label shows"

logger = logging.getLogger(__name__)


def live_fields(manifest: Manifest, fields: int, seed: int = _SEED) -> SimulationConfig:
    """Fields in the light and on the camera of the simulated microscope, as the model wants them."""
    pixel_um, step_um = manifest.pixel_size_um, manifest.z_step_um
    usual = (0.85, 1.15)
    return SimulationConfig(
        seed=seed, fields=0, held_out=fields, side_px=_SIDE_PX, planes=manifest.planes,
        pixel_um=(pixel_um, pixel_um), z_step_um=(step_um, step_um), focus_um=(-1.0, 1.0), reversed_z=0.0,
        live=1.0, density=(0.4, 1.8), debris=(0.7, 1.4), carpet=(0.7, 1.4), index=usual, height=usual,
    )  # fmt: skip


def predict_fields(
    predictor: Predictor, config: SimulationConfig
) -> Iterator[tuple[str, Prediction, dict[str, Float32Image]]]:
    """Name, prediction and truth by label, (y, x) from 0 to 1, of each field."""
    manifest = predictor.manifest
    for index in range(config.held_out):
        pair = simulate(config, index)
        info = StackInfo(
            StackKey(0, f"field {index}", "Phase"), manifest.z_offsets_um, pair.stack.shape[1:],
            manifest.pixel_size_um, modality=manifest.modality, polarity=manifest.polarity,
        )  # fmt: skip
        prediction, _ = predictor.rehearse(ZStack(info, pair.stack, (0.0,) * info.planes))
        truth = dict(zip(LABELS, pair.labels / np.float32(255), strict=True))
        logger.info("field %d of %d", index + 1, config.held_out)
        yield info.key.position, prediction, truth


def calibrate(model: Path | str, out: Path, fields: int = _FIELDS, *, keep_counts: bool = False) -> Manifest:
    """Fit counts and SD to simulated fields and write the model file with them; returns its new manifest.
    Counts follow from means alone, so they may be kept where only the SD is another.

    Raises
    ------
    ModelError
        The model cannot be used.
    StorageError
        The file cannot be written.
    """
    file = read_model(model)
    manifest = file.info.manifest
    networks = {each.label for each in manifest.counting if isinstance(each, NetworkLabel)}
    judged = [label for label in manifest.label_names if label in LABELS]
    objects = [label for label in judged if label not in networks and not keep_counts]
    counted: dict[str, list[CountedField]] = {label: [] for label in objects}
    sums: dict[str, list[PixelSums]] = {label: [] for label in judged}
    bare = without_floor(file.content)
    network = file if bare is None else replace(file, content=bare)
    with Predictor(network.info, OnnxNetwork(network)) as predictor:
        for name, prediction, truth in predict_fields(predictor, live_fields(manifest, fields)):
            for label, found in counted.items():
                pixel_um = prediction.info.pixel_size_um
                found.append(CountedField.of(name, prediction.label(label), truth[label], pixel_um))
            for label, parts in sums.items():
                parts.append(_pixels(prediction, label, truth[label], manifest))
    counts = (fit_counts(label, found, _JUDGED_ON) for label, found in counted.items())
    known = (*(each for each in counts if each is not None), *map(NetworkLabel, sorted(networks)))
    if not keep_counts:
        manifest = manifest.model_copy(update={"counts": known})
    sloped = SLOPE in _weights(file.content)
    spreads = {label: calibrate_bright(parts, sloped=sloped) for label, parts in sums.items()}
    calibrated = _with_spreads(manifest, spreads, fields, "" if bare is None else _NO_FLOOR)
    write_manifest(_rescale(file.content, calibrated), calibrated, out)
    return calibrated


def _factors(manifest: Manifest) -> list[tuple[float, float]]:
    """Scale and slope that the graph applies, by label."""
    labels = len(manifest.labels)
    return list(
        zip(manifest.spread_scale or (1.0,) * labels, manifest.spread_slope or (0.0,) * labels, strict=True)
    )


def _pixels(prediction: Prediction, label: str, truth: Float32Image, manifest: Manifest) -> PixelSums:
    """Of a field with the SD as the network gives it, without the graph's factors."""
    at = prediction.labels.index(label)
    scale, slope = _factors(manifest)[at]
    mean = prediction.mean[at].astype(np.float64)
    sums = PixelSums()
    sums.add(
        mean.ravel(),
        truth.ravel().astype(np.float64),
        (prediction.spread[at] / (scale * (1 + slope * mean))).ravel(),
    )
    return sums


def _with_spreads(manifest: Manifest, fits: dict[str, BrightFit], fields: int, of: str = "") -> Manifest:
    """With the new factors of the SD, without what was true of it before; ``of`` says which SD it is."""
    factors = [
        (fits[name].scale, fits[name].slope) if name in fits else old
        for name, old in zip(manifest.label_names, _factors(manifest), strict=True)
    ]
    stale = ("coverage of 1 SD", "where truly bright", "where predicted bright")
    kept = tuple(
        each.model_copy(update={"metrics": {k: v for k, v in each.metrics.items() if k not in stale}})
        for each in manifest.evaluations
        if each.dataset != _DATASET
    )
    new = tuple(
        Evaluation(
            label=label, dataset=_DATASET, split_unit="field", n=fields,
            metrics={of + stale[0]: fit.covered}
            | ({of + stale[1]: fit.bright_covered} if fit.bright_covered is not None else {}),
        )
        for label, fit in fits.items()
    )  # fmt: skip
    return manifest.model_copy(
        update={
            "spread_scale": tuple(scale for scale, _ in factors),
            "spread_slope": tuple(slope for _, slope in factors),
            "evaluations": (*kept, *new),
            "metrics": {name: value for name, value in manifest.metrics.items() if stale[0] not in name},
        }
    )


def _rescale(content: bytes, manifest: Manifest) -> bytes:
    """The graph with the manifest's factors of the SD; ModelError if it has no place for them."""
    model = onnx.load_from_string(content)
    wanted = {SCALE: manifest.spread_scale}
    if SLOPE in _weights(content):
        wanted[SLOPE] = manifest.spread_slope
    for weight in model.graph.initializer:
        if weight.name in wanted:
            values = np.asarray(wanted.pop(weight.name), np.float32).reshape(tuple(weight.dims))
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    if wanted:
        raise ModelError(
            "the SD of this model cannot be scaled",
            wanted=f"weights {', '.join(wanted)} in its graph",
            fix="export it with this version of acq-isl, from its weights.safetensors",
        )
    scaled: bytes = model.SerializeToString()
    return scaled


def _weights(content: bytes) -> set[str]:
    """Names of the graph's weights: an SD of its own (`acq_isl.training.doubt_head`) knows no slope."""
    return {weight.name for weight in onnx.load_from_string(content).graph.initializer}


def write_manifest(content: bytes, manifest: Manifest, out: Path) -> None:
    """A model file with another manifest; all else stays."""
    model = onnx.load_from_string(content)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, entries | {MANIFEST_KEY: manifest.model_dump_json()})
    try:
        write_whole(out, model.SerializeToString())
    except OSError as error:
        raise StorageError(
            f"the model {out} cannot be written", got=str(error), fix="choose another place"
        ) from error


def main(words: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, help="by default the model itself")
    parser.add_argument("--fields", type=int, default=_FIELDS)
    parser.add_argument("--keep-counts", action="store_true", help="fit the SD alone")
    options = parser.parse_args(words)
    out = options.out or options.model
    manifest = calibrate(options.model, out, options.fields, keep_counts=options.keep_counts)
    for found in (*manifest.counts, *manifest.evaluations):
        logger.info("%s", found)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
