"""The command that makes labels for a smaller model from what larger ones predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def add_teach_command(cli: typer.Typer, out: Console) -> None:
    """Add ``teach`` to the command line."""
    cli.command("teach")(_teach(out))


def _teach(out: Console) -> Callable[..., None]:
    def command(
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
        from acq_isl.evaluation.pseudo_labels import Lesson, teach

        items = find_items(pairs, describe(models[0]).manifest, z_step_um)
        lesson = Lesson(share, tuple(held_out or ()))
        made = teach(models, items, output, lesson, lambda name: out.print(f"teaching {escape(name)}"))
        for name, why in made.untouched:
            out.print(f"[yellow]true labels[/] of {escape(name)}: {escape(why)}", soft_wrap=True)
        for name, why in made.left_out:
            out.print(f"[red]left out[/] {escape(name)}: {escape(why)}", soft_wrap=True)
        for leak in made.leaks:
            out.print(f"[red]a teacher has seen what is held out[/]: {escape(leak)}", soft_wrap=True)
        written = escape(str(made.pairs))
        out.print(f"{len(made.taught)} fields taught; copy {written} into your training file", soft_wrap=True)
        if made.leaks:
            raise typer.Exit(1)

    return command
