"""How a model is adapted, and to which pairs: the file that ``acq-isl adapt`` is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field as Setting
from pydantic import ValidationError

from acq_isl.base import StrictModel
from acq_isl.errors import ExperimentError
from acq_isl.files import load_yaml, read_text
from acq_isl.manifest import Label, Manifest
from acq_isl.training.config import TrainConfig, validate_config
from acq_isl.training.data.augment import Augmentation

SHARED = {"seed", "steps", "batch", "patch_px", "average", "precision", "threads"}


class Recipe(StrictModel):
    """How a model is adapted; every key, and how its default was measured, is described in
    docs/training.md."""

    steps: int = Setting(default=400, ge=10)
    first: float = Setting(default=0.2, gt=0, lt=1)
    learning_rate: float | None = Setting(default=None, gt=0)
    share: float = Setting(default=1.0, gt=0, le=1)
    from_scratch: float = Setting(default=3e-3, gt=0)
    batch: int = Setting(default=8, gt=0)
    patch_px: int = Setting(default=128, gt=0, multiple_of=16)
    average: float = Setting(default=0.98, ge=0, lt=1)
    look_every: int = Setting(default=25, gt=0)
    patience: int = Setting(default=16, gt=0)
    seed: int = 0
    seeds: int = Setting(default=1, gt=0)
    learn_from_all: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = Setting(default=1, gt=0)
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, slots=True)
class Pairs:
    """A file of pairs, and whether their labels are to be moved to where the structure is."""

    path: Path
    register: bool = False


def read_pairs(path: Path, manifest: Manifest, label: str | None) -> tuple[TrainConfig, Recipe]:
    """What the file says, completed by what the model says; the labels are those that the pairs show."""
    try:
        content: Any = load_yaml(read_text(path))
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise ValueError("no list of sources at data")
        recipe = Recipe.model_validate(content.pop("recipe", {}))
        given = [Label.model_validate(label) for label in content.pop("labels", [])]
    except (OSError, yaml.YAMLError, ValueError, ValidationError, TypeError, KeyError) as error:
        raise ExperimentError(
            f"{path} cannot be used", got=str(error)[:300], fix="give data, split and recipe"
        ) from error
    if content.get("planes", manifest.planes) != manifest.planes:
        raise ExperimentError(
            "the planes of a model cannot be changed by adapting it", wanted=str(manifest.planes),
            got=str(content["planes"]), fix="leave planes out, or train a model with acq-isl train",
        )  # fmt: skip
    sources = [source for source in content["data"] if isinstance(source, dict)]
    shown = {name for source in sources for name in source.get("labels", {})}
    new = {label.name: label for label in given}
    if label is not None:
        new.setdefault(label, Label(name=label, marker=label))
    new |= {known.name: known.model_copy(update={"truth_range": None}) for known in manifest.labels}
    labels = tuple(found for name, found in new.items() if name in shown)
    if not labels or (label is not None and label not in shown):
        raise ExperimentError(
            f"the pairs do not show {label or 'any label of the model'}",
            wanted=", ".join(new), got=", ".join(sorted(shown)), fix="name it in the sources' labels",
        )  # fmt: skip
    settings = recipe.model_dump(include=SHARED) | {"device": "cpu"}
    basis = {
        "name": f"{manifest.name}-adapted", "version": manifest.version, "licence": manifest.licence,
        "description": f"{manifest.name} {manifest.version}, adapted.", "modality": manifest.modality,
        "polarity": manifest.polarity, "planes": manifest.planes, "pixel_size_um": manifest.pixel_size_um,
        "z_step_um": manifest.z_step_um or 1.0, "high_pass_um": manifest.high_pass_um,
        "any_planes": manifest.any_planes,
        "labels": labels, "optimisation": settings, "augmentation": recipe.augmentation,
    }  # fmt: skip
    return validate_config(basis | content, path), recipe
