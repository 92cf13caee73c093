"""A trained model learns a new label, or a new microscope, from as little as one image.

New label: its head alone first, then everything at a tenth of the rate. New microscope: the first block,
which sees the optics, first, then everything at a tenth of the rate. The averaged weights that did best on
one held-out field are kept; scores are of the other held-out fields.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import Field as Setting
from pydantic import ValidationError
from torch import nn

from acq_isl.errors import ExperimentError, PairRefused
from acq_isl.manifest import Label, Manifest
from acq_isl.training.augment import Augmentation
from acq_isl.training.config import TrainConfig, validated
from acq_isl.training.dataset import Field
from acq_isl.training.heads import chosen_labels
from acq_isl.training.loop import Training
from acq_isl.training.network import LiveNetwork
from acq_isl.training.package import Trained, unit_of, write_package
from acq_isl.training.panels import draw_panel
from acq_isl.training.parallel import Team
from acq_isl.training.patches import Patches
from acq_isl.training.score import Score, score
from acq_isl.training.source import Strict
from acq_isl.training.train import Material, Progress, Tell, gather
from acq_isl.training.transfer import Row, write_table
from acq_isl.training.weights import Pretrained, read_pretrained, unfold

logger = logging.getLogger(__name__)

Task = Literal["new label", "new microscope"]


class Recipe(Strict):
    """How a model is adapted."""

    steps: int = Setting(default=400, ge=10)
    """At most; the same number trains from scratch."""
    first: float = Setting(default=0.4, gt=0, lt=1)
    """Share of them for the head, or the first block, alone."""
    learning_rate: float = Setting(default=1e-3, gt=0)
    share: float = Setting(default=0.1, gt=0, le=1)
    """Of this rate, for everything."""
    from_scratch: float = Setting(default=3e-3, gt=0)
    """Rate of the comparison."""
    batch: int = Setting(default=8, gt=0)
    patch_px: int = Setting(default=128, gt=0, multiple_of=16)
    average: float = Setting(default=0.98, ge=0, lt=1)
    look_every: int = Setting(default=25, gt=0)
    """Steps between two looks at the validation field."""
    patience: int = Setting(default=6, gt=0)
    """Looks without a better score until it stops."""
    seed: int = 0
    seeds: int = Setting(default=1, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = Setting(default=1, gt=0)
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What stays the same over all runs of one adaptation."""

    config: TrainConfig
    recipe: Recipe
    task: Task
    material: Material
    units: tuple[str, ...]
    pretrained: Pretrained
    tell: Tell

    @property
    def validation(self) -> tuple[Field, ...]:
        """Fields that decide when to stop: the first held-out unit, if there are others to be scored."""
        chosen = self.units[0] if len(set(self.units)) > 1 else None
        return tuple(f for f, unit in zip(self.material.held_out, self.units, strict=True) if unit == chosen)

    def scores(self, network: LiveNetwork) -> tuple[Score, ...]:
        """On the held-out units that decided nothing."""
        first = self.units[0] if self.validation else None
        kept = [(f, u) for f, u in zip(self.material.held_out, self.units, strict=True) if u != first]
        names = [label.name for label in self.config.labels]
        return score(network, [f for f, _ in kept], [u for _, u in kept], names)


def adapt(model: Path, pairs: Path, label: str | None, ks: Sequence[int], folder: Path,
          tell: Tell = lambda _: None) -> Path:  # fmt: skip
    """Adapt a model to pairs and say what it bought.

    Parameters
    ----------
    model : Path
        ``weights.safetensors`` of a run, or a model file.
    pairs : Path
        YAML with ``data``, ``split``, and if need be ``labels`` and ``recipe``.
    label : str or None
        A new label, which the pairs show; None, or one that the model has: a new microscope.
    ks : sequence of int
        Numbers of training units to try; the largest makes the model that is kept.
    folder : Path
    tell : callable

    Returns
    -------
    Path
        Of the new model file; ``transfer.csv`` and ``transfer.png`` lie beside it.

    Raises
    ------
    ModelError, ExperimentError, PairRefused, StorageError
    """
    pretrained = read_pretrained(model)
    config, recipe = read_pairs(pairs, pretrained.manifest, label)
    torch.set_num_threads(recipe.threads)
    division = config.division()
    material = gather(config, division, folder, Team(0, 1, torch.device("cpu")), tell)
    units = tuple(unit_of(item, division) for item in division.held_out)
    task: Task = "new microscope" if label in (None, *pretrained.manifest.label_names) else "new label"
    job = _Job(config, recipe, task, material, units, pretrained, tell)
    available = list(dict.fromkeys(unit_of(item, division) for item in division.train))
    chosen = sorted({k for k in ks if k <= len(available)})
    if not chosen:
        raise PairRefused(
            "there are too few pairs to train on",
            wanted=f"{min(ks)} {division.unit}s",
            got=str(len(available)),
        )
    for k in sorted(set(ks) - set(chosen)):
        logger.info("there are %d units to train on, so k = %d is left out", len(available), k)
    rows, best = _try_all(job, available, chosen)
    write_table(rows, folder, f"{task}, {division.title}", stopped=bool(job.validation))
    used = set(available[: chosen[-1]])
    train = tuple(item for item in division.train if unit_of(item, division) in used)
    both = zip(material.train, division.train, strict=True)
    seen = tuple(field for field, item in both if unit_of(item, division) in used)
    kept = Trained(best, config.labels, material.ranges, job.scores(best), seen)
    decided = tuple(
        i for i, u in zip(division.held_out, units, strict=True) if job.validation and u == units[0]
    )
    draw_panel(best, material.held_out[-config.watching.panels :], config.labels, folder / "panel.png")
    return write_package(config, replace(division, train=(*train, *decided)), kept, folder)


def read_pairs(path: Path, manifest: Manifest, label: str | None) -> tuple[TrainConfig, Recipe]:
    """What the file says, completed by what the model says; the labels are those that the pairs show."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise ValueError("no list of sources at data")
        recipe = Recipe.model_validate(content.pop("recipe", {}))
        new = {one["name"]: Label.model_validate(one) for one in content.pop("labels", [])}
    except (OSError, yaml.YAMLError, ValueError, ValidationError, TypeError, KeyError) as error:
        raise ExperimentError(
            f"{path} cannot be used", got=str(error)[:300], fix="give data, split and recipe"
        ) from error
    shown = {name for one in content["data"] if isinstance(one, dict) for name in one.get("labels", {})}
    if label is not None:
        new.setdefault(label, Label(name=label, marker=label))
    known = {one.name: one.model_copy(update={"truth_range": None}) for one in manifest.labels}
    labels = tuple(one for name, one in (new | known).items() if name in shown)
    if not labels or (label is not None and label not in shown):
        raise ExperimentError(
            f"the pairs do not show {label or 'any label of the model'}",
            wanted=", ".join(new | known), got=", ".join(sorted(shown)), fix="name it in the sources' labels",
        )  # fmt: skip
    settings = {
        "seed": recipe.seed, "steps": recipe.steps, "batch": recipe.batch, "patch_px": recipe.patch_px,
        "average": recipe.average, "precision": recipe.precision, "threads": recipe.threads, "device": "cpu",
    }  # fmt: skip
    basis = {
        "name": f"{manifest.name}-adapted", "version": manifest.version, "licence": manifest.licence,
        "description": f"{manifest.name} {manifest.version}, adapted.", "modality": manifest.modality,
        "polarity": manifest.polarity, "planes": manifest.planes, "pixel_size_um": manifest.pixel_size_um,
        "z_step_um": manifest.z_step_um or 1.0, "high_pass_um": manifest.high_pass_um,
        "labels": labels, "optimisation": settings, "augmentation": recipe.augmentation,
    }  # fmt: skip
    return validated(basis | content, path), recipe


def _try_all(job: _Job, available: Sequence[str], ks: Sequence[int]) -> tuple[list[Row], LiveNetwork]:
    """Adapt and train from scratch for every k and seed; the network adapted with the largest k is kept."""
    rows: list[Row] = []
    known = [label.name for label in job.config.labels]
    if job.task == "new microscope":
        as_is = _selected(job.pretrained, job.config.labels)
        rows += [Row(0, "as it is", job.recipe.seed, one) for one in job.scores(as_is)]
    best = job.pretrained.network
    units = [unit_of(item, job.material.division) for item in job.material.division.train]
    runs = [(k, seed) for k in ks for seed in range(job.recipe.seed, job.recipe.seed + job.recipe.seeds)]
    for done, (k, seed) in enumerate(runs):
        chosen = set(available[:k])
        fields = [f for f, unit in zip(job.material.train, units, strict=True) if unit in chosen]
        job.tell(Progress("training", done, len(runs), text=f"k = {k}, {', '.join(known)}"))
        adapted = _adapted(job, fields, seed)
        scratch = _best(job, [_scratch(job, seed)], fields)
        rows += [Row(k, "adapted", seed, one) for one in job.scores(adapted)]
        rows += [Row(k, "from scratch", seed, one) for one in job.scores(scratch)]
        best = adapted if seed == job.recipe.seed else best
    job.tell(Progress("training", len(runs), len(runs)))
    return rows, best


def _selected(pretrained: Pretrained, labels: Sequence[Label]) -> LiveNetwork:
    names = pretrained.manifest.label_names
    order = [names.index(one.name) if one.name in names else None for one in labels]
    return chosen_labels(pretrained.network, order).eval()


def _adapted(job: _Job, fields: Sequence[Field], seed: int) -> LiveNetwork:
    patches = Patches(job.recipe.batch, job.recipe.patch_px, 0.5, Augmentation())
    rng = np.random.default_rng([seed, 1])
    start = replace(job.pretrained, network=copy.deepcopy(job.pretrained.network))
    if start.folded:
        unfold(start, [patches.draw(fields, rng).x for _ in range(4)])
    network = _selected(start, job.config.labels)
    return _best(job, _phases(job, network, seed), fields)


def _phases(job: _Job, network: LiveNetwork, seed: int) -> Iterator[Training]:
    """First a part alone, then everything at a lower rate, going on from the best so far."""
    recipe = job.recipe
    first = max(round(recipe.first * recipe.steps), 1)
    part = "head." if job.task == "new label" else "down.0."
    alone = _training(job, seed, first, recipe.learning_rate, network)
    still = [module for name, module in alone.network.named_modules()
             if isinstance(module, nn.BatchNorm2d) and not name.startswith(part)]  # fmt: skip
    for name, parameter in alone.network.named_parameters():
        parameter.requires_grad_(name.startswith(part))
    alone.still = tuple(still)
    yield alone
    rate = recipe.learning_rate * recipe.share
    yield _training(job, seed + 1000, recipe.steps - first, rate, alone.average)


def _scratch(job: _Job, seed: int) -> Training:
    return _training(job, seed, job.recipe.steps, job.recipe.from_scratch, None)


def _training(job: _Job, seed: int, steps: int, rate: float, network: LiveNetwork | None) -> Training:
    settings = job.config.optimisation.model_copy(
        update={"seed": seed, "steps": steps, "learning_rate": rate}
    )
    chosen = job.pretrained.network.config
    built = job.config.architecture.model_copy(
        update={"kind": chosen.kind, "base": chosen.base, "levels": chosen.levels, "fold": chosen.fold}
    )
    training = Training.start(job.config.model_copy(update={"optimisation": settings, "architecture": built}))
    if network is not None:
        training.network.load_state_dict(network.state_dict())
        training.average.load_state_dict(network.state_dict())
    return training


def _best(job: _Job, phases: Sequence[Training] | Iterator[Training], fields: Sequence[Field]) -> LiveNetwork:
    """Train; the averaged weights that did best on the validation fields, or the last ones without such."""
    kept: LiveNetwork | None = None
    best = -np.inf
    for training in phases:
        training.patches.check(fields)
        waited = 0
        while training.step < training.config.optimisation.steps and waited < job.recipe.patience:
            training.advance(fields)
            last = training.step == training.config.optimisation.steps
            if not (job.validation and (last or training.step % job.recipe.look_every == 0)):
                continue
            now = _mean_pearson(job, training.average)
            best, waited = (now, 0) if now > best else (best, waited + 1)
            if waited == 0:
                kept = copy.deepcopy(training.average)
        if kept is None or not job.validation:
            kept = training.average
        training.average.load_state_dict(kept.state_dict())  # where the next phase begins
    if kept is None:
        raise ExperimentError("nothing was trained", fix="raise recipe.steps")
    return kept.eval()


def _mean_pearson(job: _Job, network: LiveNetwork) -> float:
    names = [label.name for label in job.config.labels]
    found = score(network, job.validation, [""] * len(job.validation), names)
    return float(np.mean([one.pearson for one in found if one.n] or [0.0]))
