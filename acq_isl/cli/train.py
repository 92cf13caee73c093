"""Commands that make models: train one, adapt one to a new label or microscope."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from acq_isl.cli.console import configure_logging, out, progress_bars
from acq_isl.errors import ExperimentError

if TYPE_CHECKING:
    from acq_isl.training.train import OnProgress

commands = typer.Typer()

Register = Annotated[
    bool, typer.Option("--register", help="Move stains that are surely shifted to where the structure is.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")]
_NAMES = {"fields": "reading fields", "training": "training"}


@commands.command("train")
def train(
    config: Annotated[Path, typer.Argument(help="Training file (.yaml); see examples/train.yaml.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; a stopped run in it goes on."),
    ] = None,
    register: Register = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on pairs of z-stacks and labels."""
    from acq_isl.training.config import load_config
    from acq_isl.training.train import run

    _configure(verbose)
    loaded = load_config(config)
    loaded = loaded.registered() if register else loaded
    folder = output or Path(f"{config.stem}-run")
    with progress() as tell:
        model = run(loaded, folder, tell)
    show_scores(model)


@commands.command("adapt")
def adapt(
    model: Annotated[Path, typer.Argument(help="weights.safetensors of a run, or a model file (.onnx).")],
    pairs: Annotated[Path, typer.Option(help="File (.yaml) with data, split and recipe.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new model.")],
    label: Annotated[
        str | None, typer.Option(help="New label that the pairs show; without it, a new microscope.")
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Fields, wells or blocks to learn from; may be repeated.",
                     show_default="1, 2, 4, 8 as far as there are"),
    ] = None,
    register: Register = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Teach a model a new label or a new microscope from a few pairs, and say what that bought."""
    from acq_isl.training.adapt import adapt
    from acq_isl.training.adapt_config import Pairs

    _configure(verbose)
    with progress() as tell:
        made = adapt(model, Pairs(pairs, register), label, k or (1, 2, 4, 8), output, tell)
    out.print((output / "transfer.csv").read_text(encoding="utf-8"), markup=False)
    show_scores(made)


def show_scores(model: Path) -> None:
    """Say what a finished model is worth and where it is."""
    from acq_isl.engines import describe

    manifest = describe(str(model)).manifest
    for scores in manifest.evaluations:
        values = ", ".join(f"{name} {value:.3f}" for name, value in scores.metrics.items())
        out.print(f"{escape(scores.label)}, {escape(scores.dataset)}, n = {scores.n}: {values}")
    out.print(f"\nmodel     {escape(str(model))}")
    out.print(f"pictures  {escape(str(model.with_name('panel.png')))}")


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Bars for what a training tells; nothing is drawn where several processes train."""
    from acq_isl.training.train import Progress

    with progress_bars(_NAMES, TimeRemainingColumn()) as advance:

        def handle(step: Progress) -> None:
            text = escape(step.text) if step.loss is None else f"loss {step.loss:.3f}"
            advance(step.phase, step.done, step.total, text)

        yield handle


def _configure(verbose: bool) -> None:
    configure_logging(verbose, logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # says each time that torchvision is absent


@commands.command("teach")
def teach(
    models: Annotated[list[str], typer.Argument(help="Model files (.onnx) that teach, or demo.")],
    pairs: Annotated[list[Path], typer.Option(help="Folder with pairs, or .yaml list of sources.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the pairs.")],
    share: Annotated[float, typer.Option(help="Of the prediction in a label; the rest is truth.")] = 0.7,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Well or field that keeps its true labels.")
    ] = None,
    z_step_um: Annotated[float | None, typer.Option(help="For TIFF files that do not say it.")] = None,
) -> None:
    """Make pairs whose labels are mostly what models predict, to train a smaller model on."""
    from acq_isl.engines import describe
    from acq_isl.evaluation.inputs import find_items
    from acq_isl.evaluation.pseudo_labels import Blend, write_pseudo_labels

    items = find_items(pairs, describe(models[0]).manifest, z_step_um)
    blend = Blend(share, tuple(held_out or ()))
    made = write_pseudo_labels(
        models, items, output, blend, lambda name: out.print(f"teaching {escape(name)}")
    )
    for name, why in made.untouched:
        out.print(f"[yellow]true labels[/] of {escape(name)}: {escape(why)}")
    for name, why in made.left_out:
        out.print(f"[red]left out[/] {escape(name)}: {escape(why)}")
    for leak in made.leaks:
        out.print(f"[red]a teacher has seen what is held out[/]: {escape(leak)}")
    written = escape(str(made.pairs))
    out.print(f"{len(made.blended)} fields taught; copy {written} into your training file")
    if made.leaks:
        raise typer.Exit(1)


@commands.command()
def sample(
    name: Annotated[str, typer.Argument(help="Which one: condition-b.")] = "condition-b",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("condition_b"),
    source: Annotated[
        str | None, typer.Option(help="Address of a mirror of the published files, such as http://...")
    ] = None,
) -> None:
    """Fetch a recorded field of real cells (20 MB, Cell 2018): a stack in phase contrast and three stains."""
    from acq_isl.readers.sample import LICENCE, SOURCE, fetch_condition_b

    if name != "condition-b":
        raise ExperimentError(f"there is no sample {name!r}", wanted="condition-b")
    for path in fetch_condition_b(output, source or SOURCE):
        out.print(escape(str(path)))
    out.print(f"{LICENCE}. Try: [bold]acq-isl demo --specimen {escape(str(output))} --z-step 1.5[/]")
