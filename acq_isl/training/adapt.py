"""A trained model learns a new label, or a new microscope, from as little as one image.

Whether that buys anything is judged on held-out fields, beside the model as it is and training from scratch;
the best of them is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from acq_isl.errors import PairRefused
from acq_isl.training.adapt_config import Pairs, read_pairs
from acq_isl.training.counts import count_held_out
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.pairs import Item
from acq_isl.training.data.splits import Division
from acq_isl.training.distributed import ProcessGroup
from acq_isl.training.fine_tune import (
    Setup,
    Start,
    Task,
    Watch,
    fit_patches,
    mean_pearson,
    network_as_it_is,
    train_network,
)
from acq_isl.training.learning_curve import Row, average_units, find_better, write_curve
from acq_isl.training.network import LiveNetwork, join_members
from acq_isl.training.package import Trained, unit_of, write_package
from acq_isl.training.panels import draw_panel
from acq_isl.training.score import HeldOutScore, score_network
from acq_isl.training.train import Datasets, OnProgress, Progress, prepare_datasets
from acq_isl.training.weights import read_pretrained

logger = logging.getLogger(__name__)

MOST_MEMBERS = 4
WORTH = 0.005
"""By how much more an average must correlate than the best single network: it takes longer to compute."""

_Made = Mapping[Start, Sequence[LiveNetwork]]  # by seed


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A network that might be kept, and how it is made again: the start and seed of each part."""

    title: str
    network: LiveNetwork
    made_by: tuple[tuple[Start, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """``validation`` are held-out fields that decide when to stop, none if there are no others to be scored;
    ``scored`` are the others, with their units."""

    setup: Setup
    data: Datasets
    validation: Sequence[Field]
    scored: Sequence[tuple[Field, str]]
    on_progress: OnProgress

    def score(self, network: LiveNetwork, unit: str | None = None) -> tuple[HeldOutScore, ...]:
        """On the fields that decided nothing, of one unit or all."""
        chosen = [(field, own) for field, own in self.scored if unit in (None, own)]
        fields, units = [field for field, _ in chosen], [own for _, own in chosen]
        return score_network(network, fields, units, self.setup.label_names)

    def rows(self, k: int, start: str, seed: int, network: LiveNetwork) -> list[Row]:
        """Scores unit by unit."""
        units = dict.fromkeys(unit for _, unit in self.scored)
        scores = [(unit, score) for unit in units for score in self.score(network, unit)]
        return [Row(k, start, seed, score, unit) for unit, score in scores if score.n]


def adapt(model: Path, pairs: Path | Pairs, label: str | None, ks: Sequence[int], folder: Path,
          on_progress: OnProgress = lambda _: None) -> Path:  # fmt: skip
    """Adapt a model to pairs and say what it bought; returns the path of the new model file.

    ``model`` is ``weights.safetensors`` of a run, or a model file; ``pairs`` YAML with ``data``, ``split``,
    and if need be ``labels`` and ``recipe``; ``label`` a new one that the pairs show (None, or one that the
    model has: a new microscope); ``ks`` are numbers of training units to try, the largest makes the model
    that is kept: adapted, or trained from scratch, or their average, or as it was, whichever does best.
    ``transfer.csv``, ``transfer_units.csv`` (for each held-out unit) and ``transfer.png`` lie beside it.
    Raises `ModelError`, `ExperimentError`, `PairRefused` and `StorageError`.
    """
    pretrained = read_pretrained(model)
    asked = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
    config, recipe = read_pairs(asked.path, pretrained.manifest, label)
    config = config.registered() if asked.register else config
    torch.set_num_threads(recipe.threads)
    division = config.divide()
    data = prepare_datasets(config, division, folder, ProcessGroup(), on_progress)
    units = tuple(unit_of(item, division) for item in division.held_out)
    task: Task = "new microscope" if label in (None, *pretrained.manifest.label_names) else "new label"
    first = units[0] if len(set(units)) > 1 else None
    held_out = list(zip(data.held_out, units, strict=True))
    validation = [field for field, unit in held_out if unit == first]
    scored = [(field, unit) for field, unit in held_out if unit != first]
    setup = Setup(config, fit_patches(recipe, data.train), task, pretrained)
    job = _Job(setup, data, validation, scored, on_progress)
    available = list(dict.fromkeys(unit_of(item, division) for item in division.train))
    chosen = _choose_ks(ks, available, division)
    best = _try_all(job, available, chosen, folder)
    used = set(available[: chosen[-1]])
    decided = [i for i, unit in zip(division.held_out, units, strict=True) if unit == first]
    train = [(f, i) for f, i in zip(data.train, division.train, strict=True) if unit_of(i, division) in used]
    return _write(job, best, train, decided, folder)


def _write(
    job: _Job, best: Candidate, train: Sequence[tuple[Field, Item]], decided: Sequence[Item], folder: Path
) -> Path:
    """The model file of the network that is kept, which may learn from held-out fields now."""
    setup, data = job.setup, job.data
    config, recipe = setup.config, setup.recipe
    network, description = best.network, f"{config.description} Kept: {best.title}."
    fields, items = [field for field, _ in train], [*(item for _, item in train), *decided]
    scores = job.score(network)
    counts = count_held_out([(network, *own) for own in job.scored], config.labels, config.pixel_size_um)
    if recipe.learn_from_all and best.made_by:
        job.on_progress(Progress("training", 0, 1, text="learning from the held-out fields too"))
        fields, items = [*data.train, *data.held_out], [*data.division.train, *data.division.held_out]
        setup = replace(setup, recipe=fit_patches(recipe, fields))
        network = join_members([train_network(setup, start, fields, seed) for start, seed in best.made_by])
        description += " Scored before it learned from the held-out fields too."
    draw_panel(best.network, data.held_out[-config.watching.panels :], config.labels, folder / "panel.png")
    trained = Trained(network, config.labels, data.ranges, scores, tuple(fields), counts)
    division = replace(data.division, train=tuple(items))
    return write_package(config.model_copy(update={"description": description}), division, trained, folder)


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


def _try_all(job: _Job, available: Sequence[str], ks: Sequence[int], folder: Path) -> Candidate:
    """Adapt and train from scratch for every k and seed, and write the tables after each. Returns what does
    best on the held-out units of what was trained with the largest k, and of the model as it is."""
    rows: list[Row] = []
    setup, division = job.setup, job.data.division
    recipe, labels = setup.recipe, ", ".join(setup.label_names)
    if setup.task == "new microscope":
        rows += job.rows(0, "as it is", recipe.seed, network_as_it_is(setup))
    units = [unit_of(item, division) for item in division.train]
    runs = [(k, seed) for k in ks for seed in range(recipe.seed, recipe.seed + recipe.seeds)]
    made: dict[Start, list[LiveNetwork]] = {"adapted": [], "from scratch": []}
    for done, (k, seed) in enumerate(runs):
        chosen = set(available[:k])
        fields = [field for field, unit in zip(job.data.train, units, strict=True) if unit in chosen]
        job.on_progress(Progress("training", done, len(runs), text=f"k = {k}, {labels}"))
        for start, networks in made.items():
            network = train_network(setup, start, fields, seed, Watch(job.validation))
            rows += job.rows(k, start, seed, network)
            networks.append(network)
        title = f"{setup.task}, {division.title}"
        write_curve(rows, folder, title, stopped=bool(job.validation))
    job.on_progress(Progress("training", len(runs), len(runs)))
    if better := find_better(average_units(rows)):
        logger.warning("%s", better)
    last = {start: networks[-recipe.seeds :] for start, networks in made.items()}
    return choose_best(setup, list(candidates(setup, last)), [field for field, _ in job.scored])


def candidates(setup: Setup, made: _Made) -> Iterator[Candidate]:
    """What might be kept: each alone, then averages that are not too slow."""
    seed = setup.recipe.seed
    if setup.task == "new microscope":
        yield Candidate("the model as it is", network_as_it_is(setup), ())
    for start, networks in made.items():
        yield Candidate(start, networks[0], ((start, seed),))
    averages: dict[str, list[tuple[Start, int]]] = {
        f"{start}, {len(networks)} seeds averaged": [(start, seed + at) for at in range(len(networks))]
        for start, networks in made.items()
        if len(networks) > 1
    }
    averages["adapted and from scratch, averaged"] = [("adapted", seed), ("from scratch", seed)]
    for title, parts in averages.items():
        joined = join_members([made[start][own - seed] for start, own in parts])
        if joined.config.members <= MOST_MEMBERS:
            yield Candidate(title, joined, tuple(parts))


def choose_best(setup: Setup, found: Sequence[Candidate], fields: Sequence[Field]) -> Candidate:
    """What does best on fields that none has seen; an average only where it is worth its time."""
    scores = [(candidate, mean_pearson(setup, candidate.network, fields)) for candidate in found]
    alone = [(candidate, r) for candidate, r in scores if len(candidate.made_by) < 2]
    best, most = max(alone, key=lambda each: each[1])
    for candidate, r in scores:
        if len(candidate.made_by) > 1 and r > most + WORTH:
            best, most = candidate, r
            cost = candidate.network.config.members / setup.pretrained.network.config.members
            logger.warning("%s takes %.3g times as long to predict as the model did", candidate.title, cost)
    for candidate, r in scores:
        logger.info("r %.3f on held-out fields: %s", r, candidate.title)
    if best.title != "adapted":
        logger.warning("kept is %s, which does better on held-out fields than adapting does", best.title)
    return best
