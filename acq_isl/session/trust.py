"""Spot checks and bias guard of a session: which fields are also stained, and what that says of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.events import Decided, EventHandler
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import visits
from acq_isl.experiment.trust import SpotChecks
from acq_isl.files import write_whole
from acq_isl.processing.statistics import pearson
from acq_isl.protocols import Microscope
from acq_isl.rules import Measurement
from acq_isl.rules.trusted import SpotJudge, SpotScore, is_drawn, score_of
from acq_isl.session.grading.scores import pair_labels, to_bright_end
from acq_isl.stack import Counting, NetworkLabel, Prediction, StackKey, StackRequest, Uint16Image
from acq_isl.storage.decision_log import Ledger

PAIRS = "pairs.yaml"
CHECK, GUARD, RULE = "spot check", "bias guard", "rule"
"""Why a field is imaged in fluorescence."""


def check_stacks(experiment: Experiment, field: StackRequest) -> tuple[StackRequest, ...]:
    """The stacks of a spot check of an overview field; ExperimentError if its exposure is not known."""
    settings = experiment.spot_checks
    if settings is None:
        return ()
    middle_um = (min(field.z_um) + max(field.z_um)) / 2
    known = {} if experiment.revisit is None else _exposures(experiment, field)
    found = []
    for preset in dict.fromkeys(truth_of(experiment).values()):
        exposure_ms = settings.exposure_ms or known.get(preset)
        if exposure_ms is None:
            raise ExperimentError(
                f"it is not known how long spot checks expose {preset}", fix="give spot_checks.exposure_ms"
            )
        stack = replace(
            field, key=replace(field.key, channel=preset), group=settings.group, preset=preset,
            z_um=tuple(middle_um + offset for offset in settings.z_offsets_um), exposure_ms=exposure_ms,
            modality="fluorescence", polarity="unknown", predict=False, camera="", keep_shutter_open=False,
            autofocus=None, attempt=0,
        )  # fmt: skip
        found.append(stack)
    return tuple(found)


def _exposures(experiment: Experiment, field: StackRequest) -> dict[str, float]:
    assert experiment.revisit is not None
    return {each.preset: each.exposure_ms for each in visits(experiment.revisit, field, field.key.time)}


def truth_of(experiment: Experiment) -> dict[str, str]:
    """Which preset shows which label in spot checks."""
    settings = experiment.spot_checks
    return {} if settings is None else settings.truth or experiment.truth


def check_settings(experiment: Experiment) -> None:
    """ExperimentError if spot checks or bias guard ask for what the experiment does not say."""
    if experiment.spot_checks is not None and not truth_of(experiment):
        raise ExperimentError(
            "spot checks need to know which preset shows which label",
            fix="give spot_checks.truth, such as {nuclei: DAPI}, or truth",
        )
    if experiment.bias_guard is not None and experiment.revisit is None:
        raise ExperimentError(
            "the bias guard revisits fields, and the experiment has no revisit",
            fix="give revisit, such as {channels: [{config: DAPI, exposure: 50}]}, or leave bias_guard out",
        )


def check_bar(experiment: Experiment, counting: Sequence[Counting]) -> None:
    """ExperimentError if a label is to have objects that its model says to be a network."""
    settings = experiment.spot_checks
    networks = [each.label for each in counting if isinstance(each, NetworkLabel)]
    for label in truth_of(experiment):
        if settings is not None and settings.at_least.f1 is not None and label in networks:
            raise ExperimentError(
                f"{label} (predicted) are a network, of which no objects can be compared",
                got="spot_checks.at_least.f1",
                fix="give spot_checks.at_least.r, or leave the label out of spot_checks.truth",
            )


def score_label(
    prediction: Prediction, label: str, images: Uint16Image, rules: Sequence[Measurement]
) -> SpotScore:
    """A predicted label against its stain, (z, y, x) uint16; ExperimentError if the sizes differ."""
    stain, predicted = images.max(axis=0), prediction.label(label)
    if stain.shape != predicted.shape:
        raise ExperimentError(
            "prediction and stain cannot be compared pixel by pixel",
            wanted=f"a stain of {predicted.shape} (rows, columns)",
            got=f"{stain.shape}",
            fix="image the fluorescence with the camera ROI and binning of the overview",
        )
    (pair,) = pair_labels(prediction, {label: to_bright_end(stain)}, rules)
    return SpotScore(label, pearson(predicted, stain), pair.found, pair.true, pair.matched)


def judge_of(settings: SpotChecks | None, before: Iterable[Mapping[str, Any]] = ()) -> SpotJudge:
    """The judge of an experiment's spot checks, who knows those that ledger lines ``before`` tell of."""
    if settings is None:
        return SpotJudge(None, None, 1, 1)
    judge = SpotJudge(settings.at_least.r, settings.at_least.f1, settings.least, settings.over)
    for line in before:
        if line["kind"] == "spot_check":
            judge.add(score_of(line))
    return judge


def drawn_fields(experiment: Experiment, fields: Iterable[StackKey]) -> dict[str, list[StackKey]]:
    """Which fields of a plan chance draws, by what for: known before the run."""
    asked = {CHECK: experiment.spot_checks, GUARD: experiment.bias_guard}
    keys = list(fields)
    return {
        what: [key for key in keys if is_drawn(what, settings.seed, settings.share, key)]
        for what, settings in asked.items()
        if settings is not None
    }


def explain_trust(experiment: Experiment, fields: Sequence[StackKey]) -> Iterator[str]:
    """Spot checks and bias guard in sentences, with the number of fields that chance draws."""
    drawn = drawn_fields(experiment, fields)
    if (settings := experiment.spot_checks) is not None:
        bars = {"r": settings.at_least.r, "F1 of objects": settings.at_least.f1}
        bar = " and ".join(f"{name} of at least {bar:g}" for name, bar in bars.items() if bar is not None)
        shown = ", ".join(f"{label} in {preset}" for label, preset in truth_of(experiment).items())
        yield (
            f"spot checks: {len(drawn[CHECK])} of {len(fields)} stacks, drawn with probability "
            f"{settings.share:g}, are also imaged ({shown}); a label that does not reach {bar} over the last "
            f"{settings.over} is only proposed from then on"
        )
    if (guard := experiment.bias_guard) is not None:
        yield (
            f"bias guard: {len(drawn[GUARD])} of {len(fields)} stacks, drawn with probability "
            f"{guard.share:g}, are revisited whatever the rules say"
        )


def write_pairs(folder: Path, experiment: Experiment, channel: str) -> None:
    """What `acq-isl adapt --pairs` reads: the stacks and stains of a run with spot checks, where they lie."""
    sets = sorted(path.name for path in folder.glob("measured_*") if path.is_dir())
    if experiment.spot_checks is not None and sets:
        labels = truth_of(experiment)
        data = [{"kind": "ndtiff", "folder": name, "stack": channel, "labels": labels} for name in sets]
        pairs = {"data": data, "split": {"by": "field", "share": 0.3, "seed": 1}}
        write_whole(folder / PAIRS, yaml.safe_dump(pairs, sort_keys=False))


class Trust:
    """Owned by the session, which images what `stacks` and `guard` name, and keeps what it predicts here."""

    def __init__(
        self,
        experiment: Experiment,
        microscope: Microscope,
        ledger: Ledger,
        emit: EventHandler,
        warn: Callable[[str], None],
    ) -> None:
        self._experiment, self._microscope = experiment, microscope
        self._ledger, self._emit, self._warn = ledger, emit, warn
        self._truth, self._judge = truth_of(experiment), judge_of(experiment.spot_checks)
        self._stained: dict[StackKey, tuple[StackRequest, ...]] = {}
        self._predicted: list[Prediction] = []
        self._imaged: set[StackKey] = set()

    @property
    def propose_only(self) -> dict[str, str]:
        """Why labels are not acted upon."""
        return self._judge.propose_only

    def take_up(self, before: Iterable[Mapping[str, Any]]) -> None:
        """Go on where the ledger of an earlier run of the same plan ends."""
        self._judge = judge_of(self._experiment.spot_checks, before)

    def why_propose(self, rules: Sequence[Measurement]) -> str:
        """Why what is measured is not acted upon; empty if it is."""
        labels = (label for rule in rules for label in rule.labels)
        return next(filter(None, (self.propose_only.get(label, "") for label in labels)), "")

    def stacks(self, field: StackRequest) -> tuple[StackRequest, ...]:
        """What to image for the spot check of an overview field; nothing if it is not drawn."""
        settings = self._experiment.spot_checks
        if settings is None or not is_drawn(CHECK, settings.seed, settings.share, field.key):
            return ()
        self._stained[field.key] = check_stacks(self._experiment, field)
        return self._stained[field.key]

    def guard(self, fields: Sequence[StackKey]) -> list[StackKey]:
        """Fields that are revisited whatever the rules say; written down with their probability."""
        settings = self._experiment.bias_guard
        if settings is None:
            return []
        drawn = drawn_fields(self._experiment, fields)[GUARD]
        for key in drawn:
            self._ledger.write("guard", key=asdict(key), probability=settings.share)
            why = f"drawn with probability {settings.share:g}"
            self._emit(Decided(key, GUARD, "revisit this field whatever the rules say", why, "done"))
        return drawn

    def note_visit(self, stack: StackRequest, why: str) -> None:
        """Write down that a field is imaged in fluorescence, and because of whom."""
        self._imaged.add(stack.key)
        self._ledger.note("visit", key=asdict(stack.key), why=why)

    def keep(self, prediction: Prediction) -> None:
        """A prediction as the session has it, in full, with labels called as in the run."""
        if prediction.info.key in self._stained:
            self._predicted.append(prediction)

    def score(self) -> None:
        """Hold what was predicted against its stain; between two stacks, since it takes a moment."""
        while self._predicted:
            prediction = self._predicted.pop(0)
            stacks = {stack.preset: stack for stack in self._stained[prediction.info.key]}
            for label, preset in self._truth.items():
                # One that a budget or a failure left out was told of then.
                if label in prediction.labels and stacks[preset].key in self._imaged:
                    self._score(prediction, label, stacks[preset])

    def _score(self, prediction: Prediction, label: str, stack: StackRequest) -> None:
        key = prediction.info.key
        try:
            images, rules = self._microscope.images(stack), measurements(self._experiment)
            score = score_label(prediction, label, images, rules)
        except AcqIslError as error:
            self._warn(f"the spot check of {key} was not scored: {error}")
            return
        line: dict[str, Any] = {"key": asdict(key), "channel": stack.key.channel, **asdict(score)}
        self._ledger.write("spot_check", **line, model=prediction.model, model_sha256=prediction.model_sha256)
        self._emit(Decided(key, CHECK, f"{label} (predicted) against {stack.preset}", score.text, "done"))
        if why := self._judge.add(score):
            self._ledger.write("trust", label=label, state="propose only", why=why)
            what = f"{label} (predicted) is only proposed from now on"
            self._emit(Decided(None, CHECK, what, why, "done"))
            self._warn(f"{what}: {why}")
