"""The experiment file: what to acquire, predict, choose and do, checked before anything moves.

Acquisition parts are useq-schema sequences. Unknown keys are errors that name the nearest valid key,
also inside the useq parts, where useq itself would ignore them.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import useq
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails

from acq_isl.base import StrictModel
from acq_isl.errors import ExperimentError
from acq_isl.experiment.faults import FaultText
from acq_isl.experiment.simulated import Life, PhaseContrastOptics, SimulatedOptics
from acq_isl.rules.measurements import Measurement
from acq_isl.rules.rules import Best, Limits, Trigger
from acq_isl.stack import Modality, Polarity
from acq_isl.stream.messages import MAX_DEADLINE_MS, MAX_MODELS


def _unknown(key: str, valid: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(sorted(valid))}"
    return f"unknown key '{key}'{where}; {hint}"


def _refuse_ignored(raw: object, parsed: object, where: str = "") -> None:
    """Compare what was written with what useq understood; what it ignored is an error."""
    if isinstance(raw, Mapping) and isinstance(parsed, BaseModel):
        fields = type(parsed).model_fields
        known = set(fields) | {field.alias for field in fields.values() if field.alias}
        for key, value in raw.items():
            if key not in known:
                raise ValueError(_unknown(str(key), sorted(known), f" in {where}" if where else ""))
            _refuse_ignored(value, getattr(parsed, key, None), f"{where}.{key}" if where else key)
    elif isinstance(raw, (list, tuple)) and isinstance(parsed, (list, tuple)):
        for index, (one, other) in enumerate(zip(raw, parsed, strict=False)):
            _refuse_ignored(one, other, f"{where}[{index}]")


def _strict_sequence(raw: Any, handler: Any) -> useq.MDASequence:
    # 'tpgcz' keeps the planes of a stack together, which useq's own default order does not promise.
    given = {"axis_order": "tpgcz", **raw} if isinstance(raw, Mapping) else raw
    parsed: useq.MDASequence = handler(given)
    _refuse_ignored(raw, parsed)
    return parsed


Sequence = Annotated[useq.MDASequence, WrapValidator(_strict_sequence)]


def _expanded(path: Any) -> Any:
    return Path(path).expanduser() if isinstance(path, str) else path


Folder = Annotated[Path, BeforeValidator(_expanded)]


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


class SyntheticSpecimen(StrictModel):
    """Neurons that are computed, without end in x and y."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = 1
    life: Life = Life()
    """What changes with time; by default nothing does."""
    optics: SimulatedOptics = PhaseContrastOptics()
    """The light it is seen in. `Experiment.optics` says what the model is told of it."""


class RecordedSpecimen(StrictModel):
    """A z-stack and label images that somebody recorded, tiled over the stage."""

    kind: Literal["recorded"] = "recorded"
    folder: Folder
    """TIFF files (or one file), an NDTiff data set, or an OME-Zarr image."""
    transmitted: str | None = None
    """Channel of transmitted light, where its name does not tell."""
    position: str | None = None
    time: int | None = Field(default=None, ge=0)
    z_step_um: float | None = Field(default=None, gt=0)
    pixel_size_um: float | None = Field(default=None, gt=0)
    """Lengths are only needed where the files do not say."""


class SimulatedMicroscope(StrictModel):
    """The real Micro-Manager core with demo devices and a computed or recorded specimen."""

    kind: Literal["simulated"] = "simulated"
    specimen: SyntheticSpecimen | RecordedSpecimen = Field(
        default_factory=SyntheticSpecimen, discriminator="kind"
    )
    camera_px: tuple[int, int] = (512, 512)
    """Rows and columns of the camera."""
    time_scale: float = Field(default=1.0, ge=0)
    """How many seconds pass for the specimen in one second."""
    prepare_ahead: int = Field(default=0, ge=0, le=4)
    """Fields of a scan that a second thread draws in advance; the images are the same."""
    faults: tuple[FaultText, ...] = ()
    """What goes wrong on purpose, such as ``focus-drift:2``; see docs/simulator.md."""


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


MicroscopeSettings = Annotated[
    SimulatedMicroscope | RunningMicroManager | HeadlessMicroManager, Field(discriminator="kind")
]


class Experiment(StrictModel):
    """One run, from the first overview field to the last comparison."""

    name: str = Field(min_length=1)
    microscope: MicroscopeSettings = RunningMicroManager()
    optics: OpticsSettings = OpticsSettings()
    overview: Sequence
    """Transmitted-light z-stacks; a grid without field size takes the camera's."""
    model: str = "demo"
    """Path of a model file, or ``demo`` for the one that ships with acq-isl."""
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=MAX_MODELS)
    """Instead of ``model``: several, as FILE or NAME=FILE; with a remote engine, names of its models."""
    deadline_ms: float | None = Field(default=None, gt=0, le=MAX_DEADLINE_MS)
    """A prediction not begun so long after the last slice of its field is left for later, on disk."""
    engine: Annotated[LocalEngine | RemoteEngine | NoEngine, Field(discriminator="kind")] = LocalEngine()
    choose: Best | None = None
    """Which fields to go back to."""
    revisit: Sequence | None = None
    """Channels (and z, relative to the middle of the stack) to image at the chosen fields."""
    triggers: tuple[Trigger, ...] = ()
    truth: dict[str, str] = Field(default_factory=dict)
    """Which fluorescence channel shows which predicted label, to score the prediction."""
    limits: Limits = Limits()
    output: Folder = Path("acq-isl-runs")
    prediction_timeout_s: float = Field(default=120.0, gt=0)
    """How long to wait for predictions after the last overview slice before going on without them."""

    @model_validator(mode="after")
    def _model_or_models(self) -> Experiment:
        if self.models and "model" in self.model_fields_set:
            raise ValueError("give either 'model' or 'models', not both")
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
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError(
                f"the experiment file {path} cannot be read", got=str(error), fix="check the path"
            ) from error
        return cls.from_text(text, str(path))

    @classmethod
    def from_text(cls, text: str, name: str = "the experiment") -> Experiment:
        """As `from_yaml`, from YAML text; ``name`` is used in messages."""
        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ExperimentError(
                f"{name} is not valid YAML", got=str(error), fix="correct the line"
            ) from error
        if not isinstance(raw, dict):
            got, wanted = type(raw).__name__, "keys such as name and overview"
            raise ExperimentError(f"{name} is not an experiment", wanted=wanted, got=got)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            problems = [_explain(detail) for detail in error.errors()]
            raise ExperimentError(f"{name}: {'; '.join(problems)}") from error

    def to_yaml(self) -> str:
        """The experiment as it will run, all defaults spelled out; reads back as the same experiment."""
        other = "model" if self.models else "models"
        data = self.model_dump(mode="json", exclude={"overview", "revisit", other})
        data["overview"] = _sequence_data(self.overview)
        if self.revisit is not None:
            data["revisit"] = _sequence_data(self.revisit)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def measurements(experiment: Experiment) -> tuple[Measurement, ...]:
    """What the rules of an experiment look at, that of the choice first, each once."""
    chosen = [experiment.choose.measurement] if experiment.choose else []
    return tuple(dict.fromkeys([*chosen, *(one.when.measurement for one in experiment.triggers)]))


def _sequence_data(sequence: useq.MDASequence) -> Any:
    return sequence.model_dump(mode="json", exclude_unset=True, exclude={"uid"})


def _explain(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        parent, key = detail["loc"][:-1], str(detail["loc"][-1])
        inside = f" in {'.'.join(map(str, parent))}" if parent else ""
        return _unknown(key, _keys_at(Experiment, parent), inside)
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the model that a pydantic error location points into."""
    found: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [one.model_fields[part] for one in found if part in one.model_fields]
        if fields:
            found = [inner for field in fields for inner in _models(field.annotation)]
        else:  # the tag of a union
            found = [one for one in found if part in get_args(one.model_fields["kind"].annotation)] or found
    return sorted({key for one in found for key in one.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list, dict):
        return [model for part in get_args(annotation) for model in _models(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
