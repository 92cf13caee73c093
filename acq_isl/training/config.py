"""What a training run is told, as a strict YAML file."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acq_isl.errors import ExperimentError
from acq_isl.manifest import Label
from acq_isl.training.network import NetworkConfig
from acq_isl.training.simulate import SimulationConfig


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimisation(_Strict):
    """How the weights are found."""

    seed: int = 0
    steps: int = Field(default=3000, gt=0)
    batch: int = Field(default=8, gt=0)
    patch_px: int = Field(default=128, gt=0, multiple_of=16)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    beta: float = Field(default=0.5, ge=0, le=1)
    """Of the beta-NLL loss: 0 is the plain likelihood, 1 weighs all pixels like the squared error."""
    average: float = Field(default=0.998, ge=0, lt=1)
    """Decay per step of the exponential average of the weights, which is what is kept in the end."""
    checkpoint_every: int = Field(default=250, gt=0)
    threads: int = Field(default=1, gt=0)


class TrainConfig(_Strict):
    """One training run on simulated fields."""

    name: str
    version: str
    licence: str = "BSD-3-Clause"
    description: str
    pixel_size_um: float = Field(default=0.3, gt=0)
    z_step_um: float = Field(default=1.5, gt=0)
    high_pass_um: float = Field(default=6.0, gt=0)
    base: int = Field(default=24, gt=0)
    levels: int = Field(default=4, gt=1)
    labels: tuple[Label, Label, Label] = (
        Label(name="nuclei", marker="DAPI", color="#56B4E9"),
        Label(name="dendrites", marker="MAP2", color="#E69F00"),
        Label(name="axons", marker="NFH", color="#CC79A7"),
    )
    """In the order of `acq_isl.training.simulate.LABELS`; colours from Okabe and Ito's set."""
    simulation: SimulationConfig = SimulationConfig()
    optimisation: Optimisation = Optimisation()

    @property
    def network(self) -> NetworkConfig:
        """Size of the network that follows from the rest."""
        sigma = self.high_pass_um / self.pixel_size_um
        return NetworkConfig(self.simulation.planes, len(self.labels), self.base, self.levels, sigma)


def load_config(path: Path) -> TrainConfig:
    """Read a training file; `ExperimentError` names the first thing that is wrong in it."""
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}", fix="check the path and the YAML") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ExperimentError(
            f"{path}: {where}: {first['msg']}",
            got=repr(first["input"])[:80],
            fix="see acq_isl.training.config.TrainConfig for what may stand there",
        ) from error
