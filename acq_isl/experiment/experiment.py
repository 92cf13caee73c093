"""The experiment file: what to acquire, predict, choose and do, checked before anything moves.

Acquisition parts are useq-schema sequences. Unknown keys are errors that name the nearest valid key,
also inside the useq parts, where useq itself would ignore them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import useq
import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from acq_isl.base import Folder, StrictModel
from acq_isl.errors import ExperimentError
from acq_isl.experiment.failures import OnFailure, SkipStack
from acq_isl.experiment.simulated import (
    EpithelialSpecimen,
    RecordedSpecimen,
    SimulatedMicroscope,
    SyntheticSpecimen,
)
from acq_isl.experiment.strict import Sequence, explain
from acq_isl.experiment.trust import BiasGuard, SpotChecks
from acq_isl.files import load_yaml, read_text
from acq_isl.rules import Limits, Measurement, Ranking, Schedule, Trigger
from acq_isl.rules.pixels import PixelToStage
from acq_isl.rules.plugins import packages_of
from acq_isl.stack import Modality, Polarity
from acq_isl.stream.messages import MAX_DEADLINE_MS, MAX_MODELS

__all__ = [
    "EpithelialSpecimen",
    "Experiment",
    "FocusPolicy",
    "Folder",
    "HeadlessMicroManager",
    "LocalEngine",
    "MicroscopeSettings",
    "NoEngine",
    "OpticsSettings",
    "RecordedSpecimen",
    "RemoteEngine",
    "RunningMicroManager",
    "Sequence",
    "SimulatedMicroscope",
    "SyntheticSpecimen",
    "measurements",
]


class OpticsSettings(StrictModel):
    """How the transmitted light is made; compared with what the model was trained on."""

    modality: Modality = "unknown"
    polarity: Polarity = "unknown"
    """Whether dense matter looks dark (positive phase contrast) or bright in focus."""


class LocalEngine(StrictModel):
    """Start an engine process on this computer for the run."""

    kind: Literal["local"] = "local"
    threads: int | None = Field(default=None, ge=1)
    """Processor threads for inference; by default some cores are left to the acquisition."""
    views: int = Field(default=1, ge=1, le=8)
    """Predictions are averaged over so many views of each stack, each of which takes as long."""
    degrade: bool = True
    """Whether a slower engine of the same model may take over from one that fails, as each of its predictions
    says. Without, all predictions of a run are of one engine, and stacks wait on disk while it is gone."""
    smaller_model: str | None = None
    """Model file of the same labels, planes and optics that predicts where no engine runs ``model``, or where
    ``model`` would not keep ``deadline_ms`` on this computer, as measured, and this one would. Each of its
    predictions says so. By default the run goes on with ``model``, or without predictions."""

    @model_validator(mode="after")
    def _may_degrade(self) -> LocalEngine:
        if self.smaller_model is not None and not self.degrade:
            raise ValueError("smaller_model takes over only with degrade: true")
        return self


class RemoteEngine(StrictModel):
    """Use an engine that somebody started with ``acq-isl serve``."""

    kind: Literal["remote"] = "remote"
    address: str
    """Such as ``tcp://127.0.0.1:5599``."""
    keys: Folder | None = None
    """Folder of keys (``acq-isl keys``), for an engine on another host."""


class NoEngine(StrictModel):
    """Acquire everything, predict nothing; stacks wait in the spool of the run."""

    kind: Literal["none"] = "none"


class RunningMicroManager(StrictModel):
    """A Micro-Manager that is open on this computer, with its ZMQ server switched on (Java backend)."""

    kind: Literal["running"] = "running"
    port: int = 4827


class HeadlessMicroManager(StrictModel):
    """Start the core of an installed Micro-Manager without its window (Python backend)."""

    kind: Literal["headless"] = "headless"
    folder: Folder
    """Where Micro-Manager is installed."""
    config: Folder
    """Its hardware configuration (.cfg)."""


FocusPolicy = Literal["skip", "go_on", "stop"]

MicroscopeSettings = Annotated[
    SimulatedMicroscope | RunningMicroManager | HeadlessMicroManager, Field(discriminator="kind")
]


class Experiment(StrictModel):
    """One run, from the first overview field to the last comparison."""

    name: str = Field(min_length=1, max_length=100)
    """Of the run, its folder and report."""
    microscope: MicroscopeSettings = RunningMicroManager()
    """What is used without ``--sim``."""
    optics: OpticsSettings = OpticsSettings()
    """Of the transmitted light."""
    overview: Sequence
    """Transmitted-light z-stacks; a grid without field size takes the camera's."""
    model: str = "demo"
    """Path of a model file, or ``demo`` for the one that ships with acq-isl."""
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=MAX_MODELS)
    """Instead of ``model``: several, as FILE or NAME=FILE; with a remote engine, names of its models."""
    deadline_ms: float | None = Field(default=None, gt=0, le=MAX_DEADLINE_MS)
    """A prediction not begun so long after the last slice of its field is left for later, on disk."""
    engine: Annotated[LocalEngine | RemoteEngine | NoEngine, Field(discriminator="kind")] = LocalEngine()
    """Who predicts."""
    choose: Ranking | None = None
    """Which fields of a time point to go back to; without ``kind``: the best ``k``."""
    revisit: Sequence | None = None
    """Channels (and z, relative to the middle of the stack) to image at the chosen fields."""
    triggers: tuple[Trigger, ...] = ()
    """What is done at once where a predicted label passes a threshold."""
    schedule: Schedule | None = None
    """Which fields of a time-lapse are imaged at which time point; by default all at each."""
    truth: dict[str, str] = Field(default_factory=dict)
    """Which fluorescence channel shows which predicted label, to score the prediction."""
    spot_checks: SpotChecks | None = None
    """Which fields are also imaged in fluorescence to check the model, and what it must reach."""
    bias_guard: BiasGuard | None = None
    """Which share of the fields is revisited at random."""
    when_focus_fails: FocusPolicy = "skip"
    """What becomes of a field whose focus the ``autofocus_plan`` does not find: ``skip`` it, ``go_on`` and
    image it where the focus was found last, or else planned, or ``stop`` the run."""
    on_failure: OnFailure = SkipStack()
    """What becomes of a stack at which stage, camera or another device fails, and of the run."""
    limits: Limits = Limits()
    """Nothing moves or is exposed beyond these."""
    pixel_to_stage: PixelToStage | None = None
    """Where pixels lie on the stage, as ``acq-isl affine`` measures it; needed to centre objects."""
    require: float = Field(default=1.0, ge=0, le=1)
    """Share of the overview fields that must be predicted, or the run ends with exit code 3."""
    plugins: dict[str, str] = Field(default_factory=dict)
    """Package of each kind that acq-isl has not itself, as `to_yaml` writes it down."""
    output: Folder = Path("acq-isl-runs")
    """Where the folders of runs are made."""
    prediction_timeout_s: float = Field(default=120.0, gt=0)
    """How long to wait for predictions after the last overview slice before going on without them."""

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path:
        """Where functions of the user's (``call``) are looked for: beside the file it was read from."""
        return self._folder or Path.cwd()

    @model_validator(mode="after")
    def _model_or_models(self) -> Experiment:
        if self.models and "model" in self.model_fields_set:
            raise ValueError("give either 'model' or 'models', not both")
        if self.models and isinstance(self.engine, LocalEngine) and self.engine.smaller_model:
            raise ValueError("smaller_model stands in for 'model'; of several models none has one")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Experiment:
        names = [trigger.name for trigger in self.triggers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two triggers are called {', '.join(twice)}: give each a name of its own")
        return self

    @property
    def model_files(self) -> tuple[str, ...]:
        """The models as they are written in the file."""
        return self.models or (self.model,)

    @classmethod
    def from_yaml(cls, path: Path | str) -> Experiment:
        """Read an experiment file.

        Raises
        ------
        ExperimentError
            It cannot be read, is not YAML, or says something that cannot be done; with every problem,
            where it is, and the nearest valid key.
        """
        path = Path(path)
        try:
            text = read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            what = f"the experiment file {path} cannot be read"
            raise ExperimentError(what, got=str(error), fix="check the path") from error
        experiment = cls.from_text(text, str(path))
        experiment._folder = path.resolve().parent
        return experiment

    @classmethod
    def from_text(cls, text: str, name: str = "the experiment") -> Experiment:
        """As `from_yaml`, from YAML text; ``name`` is used in messages."""
        try:
            raw = load_yaml(text)
        except yaml.YAMLError as error:
            what = f"{name} is not valid YAML"
            raise ExperimentError(what, got=str(error), fix="correct the line") from error
        if not isinstance(raw, dict):
            got, wanted = type(raw).__name__, "keys such as name and overview"
            raise ExperimentError(f"{name} is not an experiment", wanted=wanted, got=got)
        try:
            return cls.model_validate(raw, context=raw.get("plugins"))
        except ValidationError as error:
            problems = [explain(detail, cls) for detail in error.errors()]
            raise ExperimentError(f"{name}: {'; '.join(problems)}") from error

    def to_yaml(self) -> str:
        """The experiment as it will run, all defaults spelled out; reads back as the same experiment."""
        other = "model" if self.models else "models"
        data = self.model_dump(mode="json", by_alias=True, exclude={"overview", "revisit", other})
        data["overview"] = _sequence_data(self.overview)
        if self.revisit is not None:
            data["revisit"] = _sequence_data(self.revisit)
        data["plugins"] = {**self.plugins, **packages_of(self)}
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def measurements(experiment: Experiment) -> tuple[Measurement, ...]:
    """What the rules of an experiment look at, that of the choice first, each once."""
    chosen = experiment.choose.measurements if experiment.choose else ()
    planned = experiment.schedule.measurements if experiment.schedule else ()
    triggers = (each for trigger in experiment.triggers for each in trigger.measurements)
    return tuple(dict.fromkeys([*chosen, *triggers, *planned]))


def _sequence_data(sequence: useq.MDASequence) -> Any:
    return sequence.model_dump(mode="json", exclude_unset=True, exclude={"uid"})
