"""A trained model learns a new label, or a new microscope, from as little as one image.

New label: its head alone first, then everything. New microscope: the first block, which sees the optics,
first, then everything. The averaged weights that did best on one held-out field are kept; scores are of the
other held-out fields.
"""

from __future__ import annotations

import copy
import csv
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from acq_isl.errors import ExperimentError, PairRefused
from acq_isl.manifest import Label
from acq_isl.training.adapt_config import Recipe, read_pairs
from acq_isl.training.config import Architecture, TrainConfig
from acq_isl.training.data.augment import Augmentation
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.patches import Patches
from acq_isl.training.distributed import Team
from acq_isl.training.export.model_file import Trained, unit_of, write_package
from acq_isl.training.export.weights import Pretrained, read_pretrained, unfold
from acq_isl.training.learning_curve import Row, beaten, write_table
from acq_isl.training.loop import Training
from acq_isl.training.network import LiveNetwork, chosen_labels
from acq_isl.training.panels import draw_panel
from acq_isl.training.score import Score, score
from acq_isl.training.train import Material, Progress, Tell, gather

logger = logging.getLogger(__name__)

Task = Literal["new label", "new microscope"]
_RATES: dict[Task, float] = {"new label": 3e-3, "new microscope": 1e-3}
UNITS = "transfer_units.csv"
_OF_A_MEMBER = r"(others\.\d+\.)?"


@dataclass(frozen=True, slots=True)
class _UnitRow:
    """One network on one held-out unit."""

    unit: str
    row: Row


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
        kept = [(f, u) for u, fields in self.scored.items() for f in fields]
        return score(network, [f for f, _ in kept], [u for _, u in kept], self.names)

    def rows(self, k: int, start: str, seed: int, network: LiveNetwork) -> list[_UnitRow]:
        """The same, unit by unit."""
        return [
            _UnitRow(unit, Row(k, start, seed, one))
            for unit, fields in self.scored.items()
            for one in score(network, fields, [unit] * len(fields), self.names)
            if one.n
        ]

    @property
    def names(self) -> list[str]:
        """Of the labels."""
        return [label.name for label in self.config.labels]

    @property
    def scored(self) -> dict[str, list[Field]]:
        """Held-out fields that decided nothing, by unit."""
        first = self.units[0] if self.validation else None
        found: dict[str, list[Field]] = {}
        for field, unit in zip(self.material.held_out, self.units, strict=True):
            if unit != first:
                found.setdefault(unit, []).append(field)
        return found


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
        Of the new model file; ``transfer.csv``, ``transfer_units.csv`` (the same for each held-out unit) and
        ``transfer.png`` lie beside it.

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
    best = _try_all(job, available, chosen, folder)
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


def _try_all(job: _Job, available: Sequence[str], ks: Sequence[int], folder: Path) -> LiveNetwork:
    """Adapt and train from scratch for every k and seed, and write the tables after each.

    Returns the network adapted with the largest k.
    """
    rows: list[_UnitRow] = []
    if job.task == "new microscope":
        as_is = _selected(job.pretrained, job.config.labels)
        rows += job.rows(0, "as it is", job.recipe.seed, as_is)
    best = job.pretrained.network
    units = [unit_of(item, job.material.division) for item in job.material.division.train]
    runs = [(k, seed) for k in ks for seed in range(job.recipe.seed, job.recipe.seed + job.recipe.seeds)]
    for done, (k, seed) in enumerate(runs):
        chosen = set(available[:k])
        fields = [f for f, unit in zip(job.material.train, units, strict=True) if unit in chosen]
        job.tell(Progress("training", done, len(runs), text=f"k = {k}, {', '.join(job.names)}"))
        adapted = _adapted(job, fields, seed)
        scratch = _best(job, [_scratch(job, seed)], fields)
        rows += [*job.rows(k, "adapted", seed, adapted), *job.rows(k, "from scratch", seed, scratch)]
        best = adapted if seed == job.recipe.seed else best
        title = f"{job.task}, {job.material.division.title}"
        write_table(_means(rows), folder, title, stopped=bool(job.validation))
        _write_units(rows, folder / UNITS)
    job.tell(Progress("training", len(runs), len(runs)))
    if better := beaten(_means(rows)):
        logger.warning("%s", better)
    return best


def _means(rows: Sequence[_UnitRow]) -> list[Row]:
    """Over the units; coverage and scale, which the table has not, are those of the first."""
    found: dict[tuple[int, str, int, str], list[Row]] = {}
    for row in (one.row for one in rows):
        found.setdefault((row.k, row.start, row.seed, row.score.label), []).append(row)
    return [replace(own[0], score=_mean([row.score for row in own])) for own in found.values()]


def _mean(scores: Sequence[Score]) -> Score:
    pearson, mae = (float(np.mean([getattr(one, what) for one in scores])) for what in ("pearson", "mae"))
    return replace(scores[0], n=len(scores), pearson=pearson, mae=mae)


def _write_units(rows: Sequence[_UnitRow], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["k", "start", "seed", "label", "unit", "pearson", "mae"])
        for unit, row in ((one.unit, one.row) for one in rows):
            values = (f"{row.score.pearson:.4f}", f"{row.score.mae:.4f}")
            table.writerow([row.k, row.start, row.seed, row.score.label, unit, *values])


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
    # A few fields may mislead: the model as it is stays unless the validation unit says otherwise.
    as_it_is = network if job.task == "new microscope" else None
    return _best(job, _phases(job, network, seed), fields, as_it_is)


def _phases(job: _Job, network: LiveNetwork, seed: int) -> Iterator[Training]:
    """First a part alone, then everything, going on from the best so far."""
    recipe = job.recipe
    first = max(round(recipe.first * recipe.steps), 1)
    part = re.compile(_OF_A_MEMBER + ("head" if job.task == "new label" else "down.0") + r"\.")
    rate = recipe.learning_rate or _RATES[job.task]
    alone = _training(job, seed, first, rate, network)
    still = [module for name, module in alone.network.named_modules()
             if isinstance(module, nn.BatchNorm2d) and not part.match(name)]  # fmt: skip
    for name, parameter in alone.network.named_parameters():
        parameter.requires_grad_(part.match(name) is not None)
    alone.still = tuple(still)
    yield alone
    yield _training(job, seed + 1000, recipe.steps - first, rate * recipe.share, alone.average)


def _scratch(job: _Job, seed: int) -> Training:
    return _training(job, seed, job.recipe.steps, job.recipe.from_scratch, None)


def _training(job: _Job, seed: int, steps: int, rate: float, network: LiveNetwork | None) -> Training:
    settings = job.config.optimisation.model_copy(
        update={"seed": seed, "steps": steps, "learning_rate": rate}
    )
    chosen = job.pretrained.network.config
    built = job.config.architecture.model_copy(
        update={name: getattr(chosen, name) for name in Architecture.model_fields}
    )
    training = Training.start(job.config.model_copy(update={"optimisation": settings, "architecture": built}))
    if network is not None:
        training.network.load_state_dict(network.state_dict())
        training.average.load_state_dict(network.state_dict())
    return training


def _best(
    job: _Job,
    phases: Sequence[Training] | Iterator[Training],
    fields: Sequence[Field],
    start: LiveNetwork | None = None,
) -> LiveNetwork:
    """Train; the averaged weights that did best on the validation fields, or the last ones without such."""
    kept = start if job.validation else None
    best = _mean_pearson(job, kept) if kept is not None else -np.inf
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
    found = score(network, job.validation, [""] * len(job.validation), job.names)
    return float(np.mean([one.pearson for one in found if one.n] or [0.0]))
