"""What a training run is told, as a strict YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ExperimentError, PairRefused
from acq_isl.files import load_yaml, read_text
from acq_isl.manifest import AnyPlanes, Instrument, Label
from acq_isl.stack import Modality, Polarity
from acq_isl.training.data.augment import Augmentation
from acq_isl.training.data.pairs import Checks, Nominal
from acq_isl.training.data.source_simulated import SimulationConfig
from acq_isl.training.data.sources import Simulated, SimulatedSource, Source
from acq_isl.training.data.splits import Division, Split, divide, simulated_only
from acq_isl.training.network import Kind, NetworkConfig
from acq_isl.training.teachers import Teaching

_OLD_KEYS = ("base", "levels")


class Optimisation(StrictModel):
    """How the weights are found; every key is described in docs/training.md."""

    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=3000, gt=0)
    batch: int = Field(default=8, gt=0)
    patch_px: int = Field(default=128, gt=0, multiple_of=16)
    foreground: float = Field(default=0.5, ge=0, le=1)
    foreground_labels: int = Field(default=2, gt=0)
    bright_weight: float = Field(default=0.0, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    beta: float = Field(default=0.5, ge=0, le=1)
    auto_encoding: float = Field(default=0.0, ge=0)
    average: float = Field(default=0.998, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = Field(default=250, gt=0)
    threads: int = Field(default=1, gt=0)


class Watching(StrictModel):
    """What can be looked at while training."""

    log_every: int = Field(default=50, gt=0)
    panels_every: int = Field(default=0, ge=0)
    panels: int = Field(default=3, gt=0)
    tensorboard: bool = False


class Architecture(StrictModel):
    """The network, see `acq_isl.training.network.NetworkConfig`."""

    kind: Kind = "unet"
    base: int = Field(default=24, gt=0)
    levels: int = Field(default=4, gt=1)
    fold: Literal[1, 2, 4] = 2
    members: int = Field(default=1, ge=1, le=4)


def _check_names_differ(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    if len({label.name for label in labels}) < len(labels):
        raise ValueError("label names must differ")
    return labels


class TrainConfig(StrictModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str
    version: str
    licence: str = "BSD-3-Clause"
    description: str
    modality: Modality = "phase contrast"
    polarity: Polarity = "dark"
    instrument: Instrument | None = None
    cell_type: str = ""
    data_licence: str = ""
    planes: int = Field(default=13, gt=0)
    pixel_size_um: float = Field(default=0.3, gt=0)
    z_step_um: float = Field(default=1.5, gt=0)
    any_planes: AnyPlanes | None = None
    """Fields may have other planes: they are spread evenly over these, see `acq_isl.manifest.AnyPlanes`."""
    every_plane: int = Field(default=1, gt=0)
    """The network looks at every so many of the planes of a field; its teachers look at all of them."""
    high_pass_um: float = Field(default=6.0, gt=0)
    labels: Annotated[tuple[Label, ...], AfterValidator(_check_names_differ)] = Field(
        default=(
            Label(name="nuclei", marker="DAPI", color="#56B4E9"),
            Label(name="dendrites", marker="MAP2", color="#E69F00"),
            Label(name="axons", marker="NFH", color="#B030D8"),
        ),
        min_length=1,
    )
    """What the model predicts; a field may lack some. Colours from Okabe and Ito's set."""
    data: tuple[Source, ...] = Field(default=(SimulatedSource(kind="simulated"),), min_length=1)
    held_out: tuple[Source, ...] = ()
    """Sources that are held out as a whole; ``split`` then only says what must not be on both sides."""
    split: Split | None = None
    checks: Checks = Checks()
    architecture: Architecture = Field(default=Architecture(), alias="network")
    augmentation: Augmentation = Augmentation()
    optimisation: Optimisation = Optimisation()
    teaching: Teaching = Teaching()
    watching: Watching = Watching()

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, values: Any) -> Any:
        """``simulation``, ``base`` and ``levels`` at the top: a run on simulated fields only."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if "simulation" in values and "data" not in values:
            simulation = values.pop("simulation")
            values["data"] = [{"kind": "simulated", "simulation": simulation}]
            planes = simulation.get("planes") if isinstance(simulation, dict) else simulation.planes
            values.setdefault("planes", planes if planes is not None else SimulationConfig().planes)
        old = {key: values.pop(key) for key in _OLD_KEYS if key in values}
        if old and "network" not in values and "architecture" not in values:
            values["network"] = old
        return values

    @model_validator(mode="after")
    def _check_labels_and_planes(self) -> TrainConfig:
        if (self.planes - 1) % self.every_plane:
            raise ValueError("every_plane: the last plane must be one of those that the network looks at")
        known = {label.name for label in self.labels}
        for source in (*self.data, *self.held_out):
            if isinstance(source, Simulated):
                if isinstance(source, SimulatedSource) and source.simulation.planes != self.planes:
                    raise ValueError(
                        f"simulated stacks have {source.simulation.planes} planes, not {self.planes}"
                    )
                continue
            strange = sorted(set(source.labels) - known)
            if strange and source.kind != "google_png":
                raise ValueError(f"{source.kind}: labels must say what {', '.join(strange)} is")
        if any(isinstance(source, Simulated) for source in self.held_out):
            raise ValueError("held_out: a simulated source says itself how many fields are held out")
        return self

    def registered(self) -> TrainConfig:
        """The same, with labels moved to where the structure is (``checks.register_labels``)."""
        return self.model_copy(update={"checks": self.checks.model_copy(update={"register_labels": True})})

    @property
    def network(self) -> NetworkConfig:
        """Size of the network that follows from the rest."""
        return NetworkConfig(
            planes=(self.planes - 1) // self.every_plane + 1,
            labels=len(self.labels),
            high_pass_px=self.high_pass_um / self.pixel_size_um,
            **self.architecture.model_dump(),
        )

    @property
    def nominal(self) -> Nominal:
        """The stacks that the model is for."""
        return Nominal(
            self.planes, self.pixel_size_um, self.z_step_um, self.modality, self.polarity,
            any_planes=self.any_planes,
        )  # fmt: skip

    def divide(self) -> Division:
        """Find all fields and part them; see `acq_isl.training.data.splits.divide` for what is refused."""
        items = [item for source in self.data for item in source.items(self.nominal)]
        held = [item for source in self.held_out for item in source.items(self.nominal)]
        seen = {label for item in items for label in item.labels}
        unseen = sorted({label.name for label in self.labels} - seen)
        if unseen:
            raise PairRefused(
                f"no field has the label {unseen[0]}", fix="check the source's labels and file names"
            )
        if self.split is None and not held and all(item.simulated for item in items):
            for source in self.data:
                if isinstance(source, Simulated):
                    held += source.held_out_items(self.nominal)
            return simulated_only(items, held)
        return divide(items, held, self.split)


def load_config(path: Path) -> TrainConfig:
    """Read a training file; `ExperimentError` names the first thing that is wrong in it. Relative paths of
    sources are relative to the file."""
    try:
        content = load_yaml(read_text(path))
    except (OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}", fix="check the path and the YAML") from error
    return validate_config(content, path)


def validate_config(content: Any, path: Path) -> TrainConfig:
    """The configuration that a YAML file holds, with its relative paths resolved."""
    try:
        config = TrainConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ExperimentError(
            f"{path}: {where}: {first['msg']}",
            got=repr(first["input"])[:80],
            fix="see acq_isl.training.config.TrainConfig for what may stand there",
        ) from error
    base = path.resolve().parent
    moved = {
        side: tuple(_below(base, source) for source in getattr(config, side)) for side in ("data", "held_out")
    }
    return config.model_copy(update={**moved, "teaching": config.teaching.below(base)})


def _below(base: Path, source: Source) -> Source:
    fields = {"folder", "path"} & set(type(source).model_fields)
    return source.model_copy(update={field: base / getattr(source, field) for field in fields})
