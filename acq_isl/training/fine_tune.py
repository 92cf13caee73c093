"""One training of an adaptation: from a model's weights, or anew.

New label: its head alone first, then everything. New microscope: the first block, which sees the optics,
first, then everything. With fields that decide, the averaged weights that did best on them are kept.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from acq_isl.errors import ExperimentError, PairRefused
from acq_isl.manifest import Label
from acq_isl.training.adapt_config import Recipe
from acq_isl.training.checkpoints import Checkpoints, Tensors, read_tensors, write_tensors
from acq_isl.training.config import Architecture, TrainConfig
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.patches import Patches
from acq_isl.training.loop import Training
from acq_isl.training.network import LiveNetwork, select_labels
from acq_isl.training.score import score_network
from acq_isl.training.weights import Pretrained, unfold

logger = logging.getLogger(__name__)

Task = Literal["new label", "new microscope"]
Start = Literal["adapted", "from scratch"]
_RATES: dict[Task, float] = {"new label": 3e-3, "new microscope": 1e-3}
_OF_A_MEMBER = r"(others\.\d+\.)?"
_LEAST_PATCH_PX = 32
_CHECKPOINT_EVERY = 100

OnStep = Callable[[int, float], None]
"""Told how many steps are done, and the loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What stays the same over all trainings of one adaptation."""

    config: TrainConfig
    recipe: Recipe
    task: Task
    pretrained: Pretrained

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.config.labels)


def fit_patches(recipe: Recipe, fields: Sequence[Field]) -> Recipe:
    """The recipe with patches that fit into the smallest field; `PairRefused` if that is too small."""
    smallest = min(fields, key=lambda field: min(field.y.shape[1:]))
    side = int(min(smallest.y.shape[1:]) / recipe.augmentation.reach) // 16 * 16
    if side >= recipe.patch_px:
        return recipe
    if side < _LEAST_PATCH_PX:
        raise PairRefused(
            f"{smallest.name} is too small to learn from",
            wanted=f"at least {_LEAST_PATCH_PX} pixels on each side",
            got=" x ".join(map(str, smallest.y.shape[1:])),
            fix="leave it out, or choose other cuts",
        )
    logger.warning(
        "patches are %d px, not %d, so that they fit into %s", side, recipe.patch_px, smallest.name
    )
    return recipe.model_copy(update={"patch_px": side})


def network_as_it_is(setup: Setup) -> LiveNetwork:
    """The model's network for these labels; a head that it has not is new."""
    return _select(setup.pretrained, setup.config.labels)


def _select(pretrained: Pretrained, labels: Sequence[Label]) -> LiveNetwork:
    names = pretrained.manifest.label_names
    order = [names.index(label.name) if label.name in names else None for label in labels]
    return select_labels(pretrained.network, order).eval()


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """What is done while training: ``validation`` fields decide which weights are kept; in a ``folder``,
    where there are none, checkpoints are kept, and what was finished is not done again."""

    validation: Sequence[Field] = ()
    folder: Path | None = None
    on_step: OnStep = lambda step, loss: None

    def checkpoint(self) -> tuple[int, Tensors] | None:
        """Where an earlier process came to."""
        return None if self.folder is None else Checkpoints(self.folder).newest()

    def note(self, training: Training, step: int, loss: float) -> None:
        """After every step, counted over all phases."""
        self.on_step(step, loss)
        if self.folder is not None and step % _CHECKPOINT_EVERY == 0:
            Checkpoints(self.folder).save(step, Tensors(training.state(), {}))


def train_network(
    setup: Setup, start: Start, fields: Sequence[Field], seed: int, watch: Watch | None = None
) -> LiveNetwork:
    """Train on fields: the averaged weights that did best on the validation fields, or the last ones."""
    watch = watch or Watch()
    done = None if watch.folder is None else watch.folder / "weights.safetensors"
    if done is not None and done.exists():
        return _read_back(setup, done)
    if watch.folder is not None:
        watch.folder.mkdir(parents=True, exist_ok=True)
    if start == "from scratch":
        trainings = iter([begin(setup, seed, setup.recipe.steps, setup.recipe.from_scratch, None)])
        network = _train_best(setup, trainings, fields, watch)
    else:
        before = unfolded(setup, fields, seed)
        # A few fields may mislead: the model as it is stays unless the validation unit says otherwise.
        as_it_is = before if setup.task == "new microscope" else None
        network = _train_best(setup, phases(setup, before, seed), fields, watch, as_it_is)
    if done is not None:
        write_tensors(done, Tensors(network.state_dict(), {}))
    return network


def _read_back(setup: Setup, weights: Path) -> LiveNetwork:
    size = begin(setup, 0, 1, 1.0, None).network.config
    network = LiveNetwork(size)
    network.load_state_dict(dict(read_tensors(weights).tensors))
    return network.eval()


def unfolded(setup: Setup, fields: Sequence[Field], seed: int) -> LiveNetwork:
    """The model's network, its batch normalisation as these fields want it."""
    patches = Patches(setup.recipe.batch, setup.recipe.patch_px, 0.5, setup.recipe.augmentation)
    patches.check(fields)
    rng = np.random.default_rng([seed, 1])
    start = replace(setup.pretrained, network=copy.deepcopy(setup.pretrained.network))
    if start.folded:
        unfold(start, [patches.draw(fields, rng).x for _ in range(4)])
    return _select(start, setup.config.labels)


def phases(setup: Setup, network: LiveNetwork, seed: int) -> Iterator[Training]:
    """First a part alone, then everything, going on from the best so far."""
    recipe = setup.recipe
    first = max(round(recipe.first * recipe.steps), 1)
    part = re.compile(_OF_A_MEMBER + ("head" if setup.task == "new label" else "down.0") + r"\.")
    rate = recipe.learning_rate or _RATES[setup.task]
    alone = begin(setup, seed, first, rate, network)
    alone.frozen = tuple(module for name, module in alone.network.named_modules()
                         if isinstance(module, nn.BatchNorm2d) and not part.match(name))  # fmt: skip
    for name, parameter in alone.network.named_parameters():
        parameter.requires_grad_(part.match(name) is not None)
    yield alone
    yield begin(setup, seed + 1000, recipe.steps - first, rate * recipe.share, alone.average)


def begin(setup: Setup, seed: int, steps: int, rate: float, network: LiveNetwork | None) -> Training:
    """A training of the pretrained network's size, from the weights of another or anew."""
    recipe = setup.recipe
    changes = {"seed": seed, "steps": steps, "learning_rate": rate, "patch_px": recipe.patch_px}
    settings = setup.config.optimisation.model_copy(update=changes)
    size = setup.pretrained.network.config
    architecture = setup.config.architecture.model_copy(
        update={name: getattr(size, name) for name in Architecture.model_fields}
    )
    update = {"optimisation": settings, "architecture": architecture}
    training = Training.start(setup.config.model_copy(update=update))
    if network is not None:
        training.network.load_state_dict(network.state_dict())
        training.average.load_state_dict(network.state_dict())
    return training


def _train_best(
    setup: Setup,
    trainings: Iterator[Training],
    fields: Sequence[Field],
    watch: Watch,
    start: LiveNetwork | None = None,
) -> LiveNetwork:
    validation, saved, before = watch.validation, watch.checkpoint(), 0
    kept = start if validation else None
    best = mean_pearson(setup, kept, validation) if kept is not None else -np.inf
    for training in trainings:
        training.patches.check(fields)
        steps, waited = training.config.optimisation.steps, 0
        if saved is not None and saved[0] > before + steps:
            training.step = steps  # a phase that was over
        elif saved is not None:
            training.restore(saved[0] - before, saved[1])
            saved = None
        looks = {steps, *range(0, steps, setup.recipe.look_every)}
        while training.step < steps and waited < setup.recipe.patience:
            loss = training.advance(fields)
            watch.note(training, before + training.step, loss)
            if not validation or training.step not in looks:
                continue
            now = mean_pearson(setup, training.average, validation)
            best, waited = (now, 0) if now > best else (best, waited + 1)
            if waited == 0:
                kept = copy.deepcopy(training.average)
        if kept is None or not validation:
            kept = training.average
        training.average.load_state_dict(kept.state_dict())  # where the next phase begins
        before += steps
    if kept is None:
        raise ExperimentError("nothing was trained", fix="raise recipe.steps")
    return kept.eval()


def mean_pearson(setup: Setup, network: LiveNetwork, fields: Sequence[Field]) -> float:
    """Over the labels."""
    scores = score_network(network, fields, [""] * len(fields), setup.label_names)
    return float(np.mean([score.pearson for score in scores if score.n] or [0.0]))
