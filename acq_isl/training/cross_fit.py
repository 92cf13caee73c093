"""A model learns a microscope from a few of its fields, and is judged on every one while it has not seen it.

Fields are parted into folds in the order of imaging, neighbours together. For each fold a network learns from
the others; what all of them predict of fields they have not seen is what scores, counts and SD are fitted to.
In the end a network learns from all fields.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from acq_isl.errors import ExperimentError, TrainingFailed
from acq_isl.files import write_whole
from acq_isl.manifest import Label
from acq_isl.processing.statistics import Amplitude, pearson
from acq_isl.stack import Counting, Float32Image
from acq_isl.training.adapt import WORTH
from acq_isl.training.adapt_config import SHARED, Recipe
from acq_isl.training.config import Optimisation, TrainConfig
from acq_isl.training.counts import count_held_out
from acq_isl.training.data.dataset import Field, Range, open_field, prepare, truth_ranges
from acq_isl.training.data.field_checks import check_fields
from acq_isl.training.data.pairs import Checks, Item, Nominal
from acq_isl.training.data.registration import structure
from acq_isl.training.data.sources import RecordingSource
from acq_isl.training.data.splits import Division
from acq_isl.training.fine_tune import (
    Setup,
    Start,
    Task,
    Watch,
    begin,
    fit_patches,
    mean_pearson,
    network_as_it_is,
    train_network,
)
from acq_isl.training.network import LiveNetwork, join_members
from acq_isl.training.ood_gate import WINDOW_PX, fit_gate
from acq_isl.training.package import Trained, geometry_of, write_package
from acq_isl.training.score import (
    HeldOutScore,
    Judged,
    PixelSums,
    bright_coverage,
    calibrate_bright,
    predict,
    score_sums,
    sum_pixels,
)
from acq_isl.training.train import OnProgress, Progress
from acq_isl.training.weights import Pretrained, read_pretrained

logger = logging.getLogger(__name__)

_FOLDS, _MANY_FIELDS = 3, 6
_STARTS: tuple[Start, ...] = ("adapted", "from scratch")
_LEAST_STEPS, _MOST_STEPS = 40, 2500
_FOR_THE_REST = 0.25  # of the time: reading, scoring, gate, export
_DRAWS = 2000
_FLOOR_UM = 1.2
_TIMED = 3
_ALL = -1  # in place of a fold: of all fields
AS_IT_IS = "the model as it is"
_AVERAGE = "adapted and trained from scratch, averaged"
_CHECKS = Checks(saturated_warn=0.002, saturated_refuse=0.02)
_TITLE = "fields of the microscope, each predicted by a network that had not seen it"

Sums = Mapping[tuple[int, str], PixelSums]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationTask:
    """What is to be learned: ``items`` in the order of imaging, the stain that shows each label, what stacks
    of the microscope are like, and how long it may take. ``average`` lets an adapted network and one trained
    from scratch be averaged, which takes twice as long to compute."""

    model: Path
    items: Sequence[Item]
    truth: Mapping[str, str]
    nominal: Nominal
    scope: str
    minutes: float = 15.0
    seed: int = 0
    threads: int = 2
    average: bool = False


@dataclass(frozen=True, slots=True)
class LabelResult:
    """What held-out fields say of one label; correlations are means over fields, low and high 95 % bounds."""

    label: str
    r: float
    low: float
    high: float
    as_it_is: float | None
    floor: float
    doubt_covers: float | None
    """Share of truly bright pixels within one SD that was fitted to the other fields."""
    counting: Counting | None
    amplitude: Amplitude = field(default_factory=Amplitude)


@dataclass(frozen=True, slots=True, eq=False)
class ShownField:
    """A held-out field: the middle plane, and by label truth and prediction, (y, x) each."""

    name: str
    light: Float32Image
    labels: Mapping[str, tuple[Float32Image, Float32Image]]


@dataclass(frozen=True, slots=True, eq=False)
class CrossFit:
    """What came of it. ``refused`` are held-out fields that a gate fitted to the others would refuse, of how
    many; None if no gate could be fitted."""

    model: Path
    kept: str
    labels: tuple[LabelResult, ...]
    fields: tuple[str, ...]
    folds: int
    steps: int
    slower: float
    refused: tuple[int, int] | None
    remarks: tuple[str, ...]
    shown: ShownField


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    fields: tuple[Field, ...]
    names: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]

    def without(self, fold: int) -> list[Field]:
        return [field for at, field in enumerate(self.fields) if at not in self.folds[fold]]

    def judged(self, networks: Sequence[LiveNetwork]) -> list[Judged]:
        """Each field with the network of its fold."""
        return [
            (network, self.fields[at], self.names[at])
            for network, fold in zip(networks, self.folds, strict=True)
            for at in fold
        ]


@dataclass(slots=True, eq=False)
class _Run:
    """What goes on. Finished networks and decisions stay in the folder, for a run that goes on."""

    setup: Setup
    data: _Data
    folder: Path
    tell: OnProgress
    trainings: int
    done: int = 0
    made: dict[tuple[int, Start], LiveNetwork] = field(default_factory=dict)

    def train(self, fold: int, start: Start) -> LiveNetwork:
        """The network that has not seen a fold; of fold -1 that of all fields."""
        fields = self.data.without(fold) if fold >= 0 else self.data.fields
        title = f"fold {fold + 1} of {len(self.data.folds)}" if fold >= 0 else "all fields"
        steps = self.setup.recipe.steps

        def note(step: int, loss: float) -> None:
            total = self.trainings * steps
            self.tell(Progress("training", self.done * steps + step, total, loss, f"{title}, {start}"))

        watch = Watch(folder=self.folder / f"{title} {start}".replace(" ", "-"), on_step=note)
        if (fold, start) not in self.made:
            self.made[fold, start] = train_network(self.setup, start, fields, self.setup.recipe.seed, watch)
            self.done += 1
        return self.made[fold, start]

    def network(self, fold: int, starts: Sequence[Start]) -> LiveNetwork:
        """Of these starts, averaged; the model's own without any."""
        if not starts:
            return network_as_it_is(self.setup)
        networks = [self.train(fold, start) for start in starts]
        return networks[0] if len(networks) == 1 else join_members(networks)


def cross_fit(task: CalibrationTask, folder: Path, tell: OnProgress = lambda _: None) -> CrossFit:
    """Learn from fields of one microscope, judge, and write the model file into ``folder``.

    A call that was interrupted goes on in the same folder from its last checkpoint. `PairRefused` names what
    is wrong with the fields before anything is learned; `ModelError`: the model cannot be trained further.
    """
    pretrained = read_pretrained(task.model)
    remarks = check_fields([(item.name, item.load()) for item in task.items])
    config, recipe = _configure(task, pretrained, folder)
    _check_same(config, pretrained, folder)
    torch.set_num_threads(recipe.threads)
    data, ranges, warnings = _prepare(task, config, folder, tell)
    kind: Task = "new microscope" if {*task.truth} & {*pretrained.manifest.label_names} else "new label"
    setup = Setup(config, fit_patches(recipe, data.fields), kind, pretrained)
    trainings = len(data.folds) + 2 if not task.average else 2 * (len(data.folds) + 1)
    setup = replace(setup, recipe=_in_time(setup, data, task, folder, trainings))
    run = _Run(setup, data, folder, tell, trainings)
    kept, starts = _choose(run, task.average)
    judged = data.judged([run.network(fold, starts) for fold in range(len(data.folds))])
    network = run.network(_ALL, starts)
    sums, before = sum_pixels(judged), _sums_as_it_is(setup, data)
    scores = tuple(
        _with_doubt(score, [unit for (label, _), unit in sums.items() if label == at])
        for at, score in enumerate(score_sums(sums, setup.label_names))
    )
    counts = count_held_out(judged, config.labels, config.pixel_size_um)
    manifest_text = f"{config.description} Kept: {kept}."
    trained = Trained(network, config.labels, ranges, scores, data.fields, counts)
    division = Division(tuple(task.items), tuple(task.items), "field", _TITLE)
    config = config.model_copy(update={"description": manifest_text})
    model = write_package(config, division, trained, folder)
    results = (_result(at, sums, before, data, counts, config) for at in range(len(config.labels)))
    return CrossFit(
        model, kept, tuple(results),
        data.names, len(data.folds), setup.recipe.steps,
        network.config.members / pretrained.network.config.members, _refusals(judged, data),
        (*remarks, *warnings), _show(judged[len(judged) // 2], config),
    )  # fmt: skip


def _check_same(config: TrainConfig, pretrained: Pretrained, folder: Path) -> None:
    """`TrainingFailed` if what lies in the folder was learned from another model, or for other labels."""
    folder.mkdir(parents=True, exist_ok=True)
    # Cores are not asked for: how many are free is another number in an hour.
    asked = config.model_dump_json(exclude={"data": True, "optimisation": {"threads"}})
    about = f"{pretrained.manifest.model_dump_json()} {asked}"
    digest, kept = hashlib.sha256(about.encode()).hexdigest(), folder / "learned.sha256"
    if not kept.exists():
        write_whole(kept, digest)
    elif kept.read_text(encoding="utf-8") != digest:
        raise TrainingFailed(
            f"{folder} belongs to a calibration of another model, or with other labels or settings",
            fix="give another --output, or bring back what was changed",
        )


def _configure(task: CalibrationTask, pretrained: Pretrained, folder: Path) -> tuple[TrainConfig, Recipe]:
    """The model's network, for the pixels and planes of the microscope."""
    manifest = pretrained.manifest
    known = {label.name: label.model_copy(update={"truth_range": None}) for label in manifest.labels}
    labels = tuple(known.get(name, Label(name=name, marker=stain)) for name, stain in task.truth.items())
    recipe = Recipe(seed=task.seed, threads=task.threads)
    shared = recipe.model_dump(include=SHARED) | {"device": "cpu"}
    source = RecordingSource(kind="recording", path=folder, stack=0, labels=dict(task.truth))
    config = TrainConfig(
        name=f"{manifest.name}-calibrated", version=manifest.version, licence=manifest.licence,
        description=f"{manifest.name} {manifest.version}, calibrated on {task.scope}.",
        modality=task.nominal.modality, polarity=task.nominal.polarity, planes=manifest.planes,
        pixel_size_um=task.nominal.pixel_size_um, z_step_um=task.nominal.z_step_um,
        any_planes=task.nominal.any_planes, high_pass_um=manifest.high_pass_um, labels=labels,
        data=(source,), checks=_CHECKS,
        optimisation=Optimisation(**shared), augmentation=recipe.augmentation,
    )  # fmt: skip
    return config, recipe


def _prepare(
    task: CalibrationTask, config: TrainConfig, folder: Path, tell: OnProgress
) -> tuple[_Data, tuple[Range, ...], tuple[str, ...]]:
    geometry = geometry_of(config)
    ready = []
    for done, item in enumerate(task.items, 1):
        ready.append(prepare(item, geometry, config.checks, folder / "fields"))
        tell(Progress("fields", done, len(task.items), text=item.name))
    ranges = truth_ranges(ready, geometry.labels)
    fields = tuple(open_field(each, ranges, config.optimisation.foreground_labels) for each in ready)
    number = _FOLDS if len(fields) >= _MANY_FIELDS else 2
    folds = tuple(tuple(part.tolist()) for part in np.array_split(np.arange(len(fields)), number))
    warnings = tuple(warning for each in ready for warning in each.warnings)
    return _Data(fields, tuple(item.name for item in task.items), folds), ranges, warnings


def _in_time(setup: Setup, data: _Data, task: CalibrationTask, folder: Path, trainings: int) -> Recipe:
    """As many steps as the trainings have time for; a run that goes on keeps to what was found at first."""
    kept = folder / "steps.txt"
    if kept.exists():
        return setup.recipe.model_copy(update={"steps": int(kept.read_text(encoding="utf-8"))})
    training = begin(setup, 0, 10, 1e-3, None)
    training.advance(data.fields)
    began = time.monotonic()
    for _ in range(_TIMED):
        training.advance(data.fields)
    step_s = (time.monotonic() - began) / _TIMED
    steps = int(60 * task.minutes * (1 - _FOR_THE_REST) / trainings / step_s)
    steps = min(max(steps, _LEAST_STEPS), _MOST_STEPS)
    write_whole(kept, str(steps))
    return setup.recipe.model_copy(update={"steps": steps})


def _choose(run: _Run, average: bool) -> tuple[str, tuple[Start, ...]]:
    """What does best on fields that none has seen: of the first fold, or of all if an average may be kept."""
    folds = range(len(run.data.folds)) if average else range(1)
    choices: dict[str, tuple[Start, ...]] = {
        "adapted": ("adapted",),
        "trained from scratch": ("from scratch",),
    }
    if run.setup.task == "new microscope":
        choices[AS_IT_IS] = ()
    if average:
        choices[_AVERAGE] = _STARTS
    scores: dict[str, float] = {}
    for title, starts in choices.items():
        networks = [run.network(fold, starts) for fold in folds]
        fields = [[run.data.fields[at] for at in run.data.folds[fold]] for fold in folds]
        found = [mean_pearson(run.setup, *each) for each in zip(networks, fields, strict=True)]
        scores[title] = float(np.mean(found)) - (WORTH if title == _AVERAGE else 0.0)
        logger.info("r %.3f on held-out fields: %s", scores[title], title)
    best = max(scores, key=lambda title: scores[title])
    if best != "adapted":
        logger.warning("kept is %s, which does better on held-out fields than adapting does", best)
    return best, choices[best]


def _sums_as_it_is(setup: Setup, data: _Data) -> Sums:
    """Of the labels that the model has; its heads of new ones mean nothing."""
    network, known = network_as_it_is(setup), setup.pretrained.manifest.label_names
    sums = sum_pixels((network, *own) for own in zip(data.fields, data.names, strict=True))
    return {key: each for key, each in sums.items() if setup.label_names[key[0]] in known}


def _with_doubt(score: HeldOutScore, units: Sequence[PixelSums]) -> HeldOutScore:
    """With the SD fitted where the stain is bright."""
    if not units:
        return score
    fit = calibrate_bright(units)
    return replace(
        score, scale=fit.scale, slope=fit.slope, coverage=fit.covered,
        bright_coverage=fit.bright_covered, predicted_coverage=None,
    )  # fmt: skip


def _result(
    at: int, sums: Sums, before: Sums, data: _Data, counts: Sequence[Counting], config: TrainConfig
) -> LabelResult:
    label = config.labels[at].name
    own = {name: each for (number, name), each in sums.items() if number == at}
    found = np.array([each.pearson for each in own.values()])
    draws = np.random.default_rng(0).integers(len(found), size=(_DRAWS, len(found)))
    low, high = np.percentile(found[draws].mean(axis=1), (2.5, 97.5)).tolist()
    smooth_px = _FLOOR_UM / config.pixel_size_um
    floor = [
        pearson(structure(np.asarray(each.x, np.float32), smooth_px), each.y[at])
        for each in data.fields if each.present[at]
    ]  # fmt: skip
    old = [each.pearson for (number, _), each in before.items() if number == at]
    return LabelResult(
        label, float(found.mean()), low, high, float(np.mean(old)) if old else None,
        float(np.nanmean(floor)), _doubt_of_others(own),
        next((each for each in counts if each.label == label), None),
        Amplitude.mean(each.amplitude for each in own.values()),
    )  # fmt: skip


def _doubt_of_others(units: Mapping[str, PixelSums]) -> float | None:
    """Mean share of bright pixels within one SD, in each field by factors fitted to the others."""
    covered = []
    for name, unit in units.items():
        fit = calibrate_bright([other for key, other in units.items() if key != name])
        covered.append(bright_coverage(unit, fit.scale, fit.slope))
    known = [each for each in covered if each is not None]
    return float(np.mean(known)) if known else None


def _refusals(judged: Sequence[Judged], data: _Data) -> tuple[int, int] | None:
    """How many fields of the first fold a gate would refuse that was fitted to the others."""
    network, own = judged[0][0], [field for _, field, _ in judged[: len(data.folds[0])]]
    if min(min(field.y.shape[1:]) for field in data.fields) < WINDOW_PX:
        return None
    try:
        head, gate = fit_gate(network, (_tensor(field) for field in data.without(0)))
    except ExperimentError:
        return None
    refused = 0
    with torch.no_grad():
        for field in own:
            x = _tensor(field)[None]
            distances = head(x, network.predict_with_features(x)[2])[0].flatten(1).median(dim=1).values
            refused += bool((distances > torch.tensor(gate.limits)).any())
    return refused, len(own)


def _tensor(field: Field) -> torch.Tensor:
    return torch.from_numpy(np.asarray(field.x).astype(np.float32))


def _show(judged: Judged, config: TrainConfig) -> ShownField:
    network, field, name = judged
    means = predict(network, np.asarray(field.x))[0]
    labels = {
        label.name: (field.y[at].astype(np.float32) / 255, means[at])
        for at, label in enumerate(config.labels)
        if field.present[at]
    }
    return ShownField(name, np.asarray(field.x[len(field.x) // 2], np.float32), labels)
