"""A trained model learns a new label, or a new microscope, from as little as one image.

New label: its head alone first, then everything. New microscope: the first block, which sees the optics,
first, then everything. The averaged weights that did best on one held-out field are kept; scores are of the
other held-out fields.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
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
from acq_isl.training.data.splits import Division
from acq_isl.training.distributed import ProcessGroup
from acq_isl.training.learning_curve import Row, average_units, find_better, write_curve
from acq_isl.training.loop import Training
from acq_isl.training.network import LiveNetwork, select_labels
from acq_isl.training.package import Trained, unit_of, write_package
from acq_isl.training.panels import draw_panel
from acq_isl.training.score import HeldOutScore, score_network
from acq_isl.training.train import Datasets, OnProgress, Progress, prepare_datasets
from acq_isl.training.weights import Pretrained, read_pretrained, unfold

logger = logging.getLogger(__name__)

Task = Literal["new label", "new microscope"]
_RATES: dict[Task, float] = {"new label": 3e-3, "new microscope": 1e-3}
_OF_A_MEMBER = r"(others\.\d+\.)?"


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What stays the same over all runs of one adaptation. ``validation`` are held-out fields that decide
    when to stop, none if there are no others to be scored; ``scored`` are the others, with their units."""

    config: TrainConfig
    recipe: Recipe
    task: Task
    data: Datasets
    validation: Sequence[Field]
    scored: Sequence[tuple[Field, str]]
    pretrained: Pretrained
    on_progress: OnProgress

    def score(self, network: LiveNetwork, unit: str | None = None) -> tuple[HeldOutScore, ...]:
        """On the fields that decided nothing, of one unit or all."""
        chosen = [(field, own) for field, own in self.scored if unit in (None, own)]
        names = [label.name for label in self.config.labels]
        return score_network(network, [field for field, _ in chosen], [own for _, own in chosen], names)

    def rows(self, k: int, start: str, seed: int, network: LiveNetwork) -> list[Row]:
        """Scores unit by unit."""
        units = dict.fromkeys(unit for _, unit in self.scored)
        scores = [(unit, score) for unit in units for score in self.score(network, unit)]
        return [Row(k, start, seed, score, unit) for unit, score in scores if score.n]


def adapt(model: Path, pairs: Path, label: str | None, ks: Sequence[int], folder: Path,
          on_progress: OnProgress = lambda _: None) -> Path:  # fmt: skip
    """Adapt a model to pairs and say what it bought; returns the path of the new model file.

    ``model`` is ``weights.safetensors`` of a run, or a model file; ``pairs`` YAML with ``data``, ``split``,
    and if need be ``labels`` and ``recipe``; ``label`` a new one that the pairs show (None, or one that the
    model has: a new microscope); ``ks`` are numbers of training units to try, the largest makes the model
    that is kept. ``transfer.csv``, ``transfer_units.csv`` (for each held-out unit) and ``transfer.png`` lie
    beside it. Raises `ModelError`, `ExperimentError`, `PairRefused` and `StorageError`.
    """
    pretrained = read_pretrained(model)
    config, recipe = read_pairs(pairs, pretrained.manifest, label)
    torch.set_num_threads(recipe.threads)
    division = config.divide()
    data = prepare_datasets(config, division, folder, ProcessGroup(), on_progress)
    units = tuple(unit_of(item, division) for item in division.held_out)
    task: Task = "new microscope" if label in (None, *pretrained.manifest.label_names) else "new label"
    first = units[0] if len(set(units)) > 1 else None
    held_out = list(zip(data.held_out, units, strict=True))
    validation = [field for field, unit in held_out if unit == first]
    scored = [(field, unit) for field, unit in held_out if unit != first]
    job = _Job(config, recipe, task, data, validation, scored, pretrained, on_progress)
    available = list(dict.fromkeys(unit_of(item, division) for item in division.train))
    chosen = _choose_ks(ks, available, division)
    best = _try_all(job, available, chosen, folder)
    used = set(available[: chosen[-1]])
    train = [(f, i) for f, i in zip(data.train, division.train, strict=True) if unit_of(i, division) in used]
    decided = [i for i, unit in zip(division.held_out, units, strict=True) if unit == first]
    trained = Trained(best, config.labels, data.ranges, job.score(best), tuple(field for field, _ in train))
    draw_panel(best, data.held_out[-config.watching.panels :], config.labels, folder / "panel.png")
    learned_from = (*(item for _, item in train), *decided)
    return write_package(config, replace(division, train=learned_from), trained, folder)


def _choose_ks(ks: Sequence[int], available: Sequence[str], division: Division) -> list[int]:
    """Those for which there are enough units, in rising order."""
    chosen = sorted({k for k in ks if k <= len(available)})
    if not chosen:
        raise PairRefused(
            "there are too few pairs to train on",
            wanted=f"{min(ks)} {division.unit}s",
            got=str(len(available)),
        )
    for k in sorted(set(ks) - set(chosen)):
        logger.info("there are %d units to train on, so k = %d is left out", len(available), k)
    return chosen


def _try_all(job: _Job, available: Sequence[str], ks: Sequence[int], folder: Path) -> LiveNetwork:
    """Adapt and train from scratch for every k and seed, and write the tables after each. Returns the network
    adapted with the largest k."""
    rows: list[Row] = []
    labels = ", ".join(label.name for label in job.config.labels)
    if job.task == "new microscope":
        rows += job.rows(0, "as it is", job.recipe.seed, _select(job.pretrained, job.config.labels))
    best = job.pretrained.network
    division = job.data.division
    units = [unit_of(item, division) for item in division.train]
    runs = [(k, seed) for k in ks for seed in range(job.recipe.seed, job.recipe.seed + job.recipe.seeds)]
    for done, (k, seed) in enumerate(runs):
        chosen = set(available[:k])
        fields = [field for field, unit in zip(job.data.train, units, strict=True) if unit in chosen]
        job.on_progress(Progress("training", done, len(runs), text=f"k = {k}, {labels}"))
        adapted = _adapt_once(job, fields, seed)
        fresh = _start(job, seed, job.recipe.steps, job.recipe.from_scratch, None)
        scratch = _train_best(job, [fresh], fields)
        rows += job.rows(k, "adapted", seed, adapted)
        rows += job.rows(k, "from scratch", seed, scratch)
        best = adapted if seed == job.recipe.seed else best
        title = f"{job.task}, {division.title}"
        write_curve(rows, folder, title, stopped=bool(job.validation))
    job.on_progress(Progress("training", len(runs), len(runs)))
    if better := find_better(average_units(rows)):
        logger.warning("%s", better)
    return best


def _select(pretrained: Pretrained, labels: Sequence[Label]) -> LiveNetwork:
    """The network for these labels; a head that it has not is new."""
    names = pretrained.manifest.label_names
    order = [names.index(label.name) if label.name in names else None for label in labels]
    return select_labels(pretrained.network, order).eval()


def _adapt_once(job: _Job, fields: Sequence[Field], seed: int) -> LiveNetwork:
    patches = Patches(job.recipe.batch, job.recipe.patch_px, 0.5, Augmentation())
    rng = np.random.default_rng([seed, 1])
    start = replace(job.pretrained, network=copy.deepcopy(job.pretrained.network))
    if start.folded:
        unfold(start, [patches.draw(fields, rng).x for _ in range(4)])
    network = _select(start, job.config.labels)
    # A few fields may mislead: the model as it is stays unless the validation unit says otherwise.
    as_it_is = network if job.task == "new microscope" else None
    return _train_best(job, _phases(job, network, seed), fields, as_it_is)


def _phases(job: _Job, network: LiveNetwork, seed: int) -> Iterator[Training]:
    """First a part alone, then everything, going on from the best so far."""
    recipe = job.recipe
    first = max(round(recipe.first * recipe.steps), 1)
    part = re.compile(_OF_A_MEMBER + ("head" if job.task == "new label" else "down.0") + r"\.")
    rate = recipe.learning_rate or _RATES[job.task]
    alone = _start(job, seed, first, rate, network)
    alone.frozen = tuple(module for name, module in alone.network.named_modules()
                         if isinstance(module, nn.BatchNorm2d) and not part.match(name))  # fmt: skip
    for name, parameter in alone.network.named_parameters():
        parameter.requires_grad_(part.match(name) is not None)
    yield alone
    yield _start(job, seed + 1000, recipe.steps - first, rate * recipe.share, alone.average)


def _start(job: _Job, seed: int, steps: int, rate: float, network: LiveNetwork | None) -> Training:
    """A training of the pretrained network's size, from the weights of another or anew."""
    changes = {"seed": seed, "steps": steps, "learning_rate": rate}
    settings = job.config.optimisation.model_copy(update=changes)
    size = job.pretrained.network.config
    architecture = job.config.architecture.model_copy(
        update={name: getattr(size, name) for name in Architecture.model_fields}
    )
    update = {"optimisation": settings, "architecture": architecture}
    training = Training.start(job.config.model_copy(update=update))
    if network is not None:
        training.network.load_state_dict(network.state_dict())
        training.average.load_state_dict(network.state_dict())
    return training


def _train_best(
    job: _Job, phases: Iterable[Training], fields: Sequence[Field], start: LiveNetwork | None = None
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
    """Over the labels, on the fields that decide when to stop."""
    names = [label.name for label in job.config.labels]
    scores = score_network(network, job.validation, [""] * len(job.validation), names)
    return float(np.mean([score.pearson for score in scores if score.n] or [0.0]))
