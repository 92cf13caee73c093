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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from acq_isl.errors import ExperimentError, TrainingFailed
from acq_isl.training.checkpoints import Checkpoints, Tensors
from acq_isl.training.config import TrainConfig, load_config
from acq_isl.training.counts import count_held_out
from acq_isl.training.data.dataset import Field, Prepared, Range, open_field, prepare, thin, truth_ranges
from acq_isl.training.data.pairs import Item
from acq_isl.training.data.splits import Division
from acq_isl.training.distributed import ProcessGroup, join_group
from acq_isl.training.loop import Training, learning_rate
from acq_isl.training.package import Trained, geometry_of, unit_of, write_package
from acq_isl.training.panels import draw_panel
from acq_isl.training.score import score_network

logger = logging.getLogger(__name__)

# What may differ between the parts of a run that was stopped.
_FREE = {"watching": True, "checks": True, "optimisation": {"threads", "checkpoint_every"}}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; ``text`` is a warning or what is being read."""

    phase: Literal["fields", "training"]
    done: int
    total: int
    loss: float | None = None
    text: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, eq=False)
class Datasets:
    """What is trained on and what is held out. ``ranges`` says per label what stands for 0 and 1; ``digest``
    is of all pixels trained on."""

    division: Division
    train: tuple[Field, ...]
    held_out: tuple[Field, ...]
    ranges: tuple[Range, ...]
    digest: str


def run(config: TrainConfig, folder: Path, on_progress: OnProgress = lambda _: None) -> Path:
    """Prepare fields, train, calibrate and export; returns the path of the model file. The folder is made if
    need be; a run in it that was stopped goes on. `PairRefused`, `StorageError`: data that cannot be used, or
    a split that leaks. `TrainingFailed`: training diverged, or the folder belongs to another run."""
    torch.set_num_threads(config.optimisation.threads)
    with join_group(config.optimisation.device) as group:
        data = prepare_datasets(config, config.divide(), folder, group, on_progress)
        training = Training.start(config, group)
        checkpoints = Checkpoints(folder)
        resume(training, checkpoints, data)
        with open_tensorboard(folder / "board", config.watching.tensorboard and group.leads) as board:
            _train(training, data, checkpoints, board, on_progress)
        if group.leads:
            _finish(training, data, folder)
        group.wait()
    return folder / "model.onnx"


def open_tensorboard(folder: Path, wanted: bool) -> AbstractContextManager[Any]:
    """A writer of curves, None if not wanted; `ExperimentError` if TensorBoard is not installed."""
    if not wanted:
        return nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ExperimentError(
            "TensorBoard is not installed",
            fix="pip install tensorboard, or set watching.tensorboard to false",
        ) from error
    writer: AbstractContextManager[Any] = SummaryWriter(str(folder))
    return writer


def prepare_datasets(
    config: TrainConfig, division: Division, folder: Path, group: ProcessGroup, on_progress: OnProgress
) -> Datasets:
    """Prepare all fields, the first process for all, and check what only their pixels tell."""
    geometry = geometry_of(config)
    total = len(division.train) + len(division.held_out)

    def prepare_all(items: Sequence[Item], before: int) -> list[Prepared]:
        ready = []
        for done, item in enumerate(items, before + 1):
            field = prepare(item, geometry, config.checks, folder / "fields")
            ready.append(field)
            on_progress(Progress("fields", done, total, text=item.name))
            for warning in field.warnings if group.leads else ():
                logger.warning("%s", warning)
        return ready

    if not group.leads:
        group.wait()
    train = prepare_all(division.train, 0)
    held_out = prepare_all(division.held_out, len(train))
    if group.leads:
        group.wait()
    division.check_contents({field.name: field.digest for field in (*train, *held_out)})
    ranges = truth_ranges(train, geometry.labels)
    first = config.optimisation.foreground_labels
    opened = [tuple(open_field(field, ranges, first) for field in side) for side in (train, held_out)]
    content = hashlib.sha256("".join(field.digest for field in train).encode()).hexdigest()
    return Datasets(division, opened[0], opened[1], ranges, content)


def resume(training: Training, checkpoints: Checkpoints, data: Datasets) -> None:
    """Go on from the last whole checkpoint of the folder, if there is one, and it is of this run."""
    training.patches.check(data.train)
    found = checkpoints.newest()
    if found is None:
        return
    step, saved = found
    if saved.metadata.get("run") != _identify(training.config, data):
        raise TrainingFailed(
            f"{checkpoints.folder} belongs to a run with other settings or data",
            fix="choose another folder, or bring back what was changed",
        )
    training.restore(step, saved)
    logger.warning("going on from step %d", training.step)


def _train(
    training: Training, data: Datasets, checkpoints: Checkpoints, board: Any, on_progress: OnProgress
) -> None:
    settings, watching = training.config.optimisation, training.config.watching
    while training.step < settings.steps:
        loss = training.advance(data.train)
        step = training.step
        if not training.group.leads:
            continue
        on_progress(Progress("training", step, settings.steps, loss))
        if step % watching.log_every == 0:
            logger.info("step %d of %d, loss %.4f", step, settings.steps, loss)
            if board is not None:
                board.add_scalar("loss", loss, step)
                board.add_scalar("learning rate", learning_rate(step, settings), step)
        if step % settings.checkpoint_every == 0 or step == settings.steps:
            metadata = {"run": _identify(training.config, data), "ranges": json.dumps(data.ranges)}
            checkpoints.save(step, Tensors(training.state(), metadata))
        if watching.panels_every and step % watching.panels_every == 0:
            _draw(training, data, checkpoints.folder / f"panel-{step:08d}.png")


def _finish(training: Training, data: Datasets, folder: Path) -> None:
    """Measure the averaged weights on the held-out fields and write the model."""
    config, division, network = training.config, data.division, training.result
    units = [unit_of(item, division) for item in division.held_out]
    seen, held_out = (thin(side, config.every_plane) for side in (data.train, data.held_out))
    scores = score_network(network, held_out, units, [label.name for label in config.labels])
    for score in scores:
        logger.info("%s, %s, n = %d: pearson %.3f", division.title, score.label, score.n, score.pearson)
    _draw(training, data, folder / "panel.png")
    judged = [(network, field, unit) for field, unit in zip(held_out, units, strict=True)]
    counts = count_held_out(judged, config.labels, config.pixel_size_um)
    trained = Trained(network, config.labels, data.ranges, scores, seen, counts)
    write_package(config, division, trained, folder)


def _draw(training: Training, data: Datasets, path: Path) -> None:
    config = training.config
    fields = thin(data.held_out[: config.watching.panels], config.every_plane)
    draw_panel(training.result, fields, config.labels, path)


def _identify(config: TrainConfig, data: Datasets) -> str:
    """A hash of all that must stay the same while a run goes on."""
    settings = config.model_dump_json(exclude=_FREE)  # type: ignore[arg-type]
    taught = f" {config.teaching.digest()}" if config.teaching.paths else ""
    moved = " registered" * config.checks.register_labels
    return hashlib.sha256(f"{settings} {data.digest}{taught}{moved}".encode()).hexdigest()


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
