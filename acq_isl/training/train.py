"""A training run: ``acq-isl train CONFIG.yaml -o FOLDER``, or this module with ``--out``.

The folder keeps prepared fields, checkpoints, pictures and, in the end, ``model.onnx``. A run that was
stopped goes on from its last checkpoint as if it had not been. On several GPUs or computers:
``torchrun --nproc-per-node N -m acq_isl.training.train CONFIG.yaml --out FOLDER``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from acq_isl.errors import ExperimentError, TrainingFailed
from acq_isl.training.checkpoints import Savepoints, Tensors
from acq_isl.training.config import TrainConfig, load_config
from acq_isl.training.data.dataset import Field, Prepared, Range, open_field, prepare, truth_ranges
from acq_isl.training.data.pairs import Item
from acq_isl.training.data.splits import Division
from acq_isl.training.distributed import Team, joined
from acq_isl.training.export.model_file import Trained, geometry_of, unit_of, write_package
from acq_isl.training.loop import Training, learning_rate
from acq_isl.training.panels import draw_panel
from acq_isl.training.score import score

logger = logging.getLogger(__name__)


class Board:
    """Writes scalars; does nothing if not wanted.

    Raises `ExperimentError` on creation if TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ExperimentError(
                "TensorBoard is not installed",
                fix="pip install tensorboard, or set watching.tensorboard to false",
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)


# What may differ between the parts of a run that was stopped.
_FREE = {"watching": True, "checks": True, "optimisation": {"threads", "checkpoint_every"}}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    phase : {"fields", "training"}
    done, total : int
    loss : float or None
    text : str
        A warning or what is being read.
    """

    phase: Literal["fields", "training"]
    done: int
    total: int
    loss: float | None = None
    text: str = ""


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What is trained on and what is held out.

    Parameters
    ----------
    division : Division
    train, held_out : tuple of Field
    ranges : tuple of (float, float)
        Per label, what stands for 0 and 1.
    digest : str
        Of all pixels trained on.
    """

    division: Division
    train: tuple[Field, ...]
    held_out: tuple[Field, ...]
    ranges: tuple[Range, ...]
    digest: str


def run(config: TrainConfig, folder: Path, tell: Tell = lambda _: None) -> Path:
    """Prepare fields, train, calibrate and export.

    Parameters
    ----------
    config : TrainConfig
    folder : Path
        Made if need be; a run in it that was stopped goes on.
    tell : callable
        Told of progress.

    Returns
    -------
    Path
        Of the model file.

    Raises
    ------
    PairRefused, StorageError
        Data that cannot be used, or a split that leaks.
    TrainingFailed
        Training diverged, or the folder belongs to another run.
    """
    torch.set_num_threads(config.optimisation.threads)
    with joined(config.optimisation.device) as team:
        material = gather(config, config.division(), folder, team, tell)
        training = Training.start(config, team)
        points = Savepoints(folder)
        resume(training, points, material)
        with Board(folder / "board", wanted=config.watching.tensorboard and team.leads) as board:
            _train(training, material, points, board, tell)
        if team.leads:
            _finish(training, material, folder)
        team.wait()
    return folder / "model.onnx"


def gather(config: TrainConfig, division: Division, folder: Path, team: Team, tell: Tell) -> Material:
    """Prepare all fields, the first process for all, and check what only their pixels tell."""
    geometry = geometry_of(config)
    names = geometry.labels

    def prepared(items: Sequence[Item], before: int) -> list[Prepared]:
        ready = []
        for done, item in enumerate(items, before + 1):
            one = prepare(item, geometry, config.checks, folder / "fields")
            ready.append(one)
            tell(Progress("fields", done, len(division.train) + len(division.held_out), text=item.name))
            for warning in one.warnings if team.leads else ():
                logger.warning("%s", warning)
        return ready

    if not team.leads:
        team.wait()
    train = prepared(division.train, 0)
    held_out = prepared(division.held_out, len(train))
    if team.leads:
        team.wait()
    division.check_contents({one.name: one.digest for one in (*train, *held_out)})
    ranges = truth_ranges(train, names)
    first = config.optimisation.foreground_labels
    content = hashlib.sha256("".join(one.digest for one in train).encode()).hexdigest()
    return Material(
        division,
        tuple(open_field(one, ranges, first) for one in train),
        tuple(open_field(one, ranges, first) for one in held_out),
        ranges,
        content,
    )


def resume(training: Training, points: Savepoints, material: Material) -> None:
    """Go on from the last whole checkpoint of the folder, if there is one, and it is of this run."""
    training.patches.check(material.train)
    found = points.newest()
    if found is None:
        return
    step, kept = found
    if kept.about.get("run") != _identity(training.config, material):
        raise TrainingFailed(
            f"{points.folder} belongs to a run with other settings or data",
            fix="choose another folder, or bring back what was changed",
        )
    training.restore(step, kept)
    logger.warning("going on from step %d", training.step)


def _train(training: Training, material: Material, points: Savepoints, board: Board, tell: Tell) -> None:
    settings, watching = training.config.optimisation, training.config.watching
    leads = training.team.leads
    while training.step < settings.steps:
        loss = training.advance(material.train)
        step = training.step
        if not leads:
            continue
        tell(Progress("training", step, settings.steps, loss))
        if step % watching.log_every == 0:
            logger.info("step %d of %d, loss %.4f", step, settings.steps, loss)
            board.scalar("loss", loss, step)
            board.scalar("learning rate", learning_rate(step, settings), step)
        if step % settings.checkpoint_every == 0 or step == settings.steps:
            about = {"run": _identity(training.config, material), "ranges": json.dumps(material.ranges)}
            points.save(step, Tensors(training.state(), about))
        if watching.panels_every and step % watching.panels_every == 0:
            _draw(training, material, points.folder / f"panel-{step:08d}.png")


def _finish(training: Training, material: Material, folder: Path) -> None:
    """Measure the averaged weights on the held-out fields and write the model."""
    config, division, network = training.config, material.division, training.result
    units = [unit_of(item, division) for item in division.held_out]
    scores = score(network, material.held_out, units, [label.name for label in config.labels])
    for one in scores:
        logger.info("%s, %s, n = %d: pearson %.3f", division.title, one.label, one.n, one.pearson)
    _draw(training, material, folder / "panel.png")
    trained = Trained(network, config.labels, material.ranges, scores, material.train)
    write_package(config, division, trained, folder)


def _draw(training: Training, material: Material, path: Path) -> None:
    fields = material.held_out[: training.config.watching.panels]
    draw_panel(training.result, fields, training.config.labels, path)


def _identity(config: TrainConfig, material: Material) -> str:
    settings = config.model_dump_json(exclude=_FREE)  # type: ignore[arg-type]
    return hashlib.sha256(f"{settings} {material.digest}".encode()).hexdigest()


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run(load_config(arguments.config), arguments.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
