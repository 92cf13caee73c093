"""How often images were scored while something was chosen: told, and written into a model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from acq_isl.cli.console import out

commands = typer.Typer()


@commands.command("looks")
def looks(
    log: Annotated[Path, typer.Argument(help="Log that 'acq-isl evaluate --looks LOG' writes.")],
    into: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Model file (.onnx) whose card is to say so, too.")
    ] = None,
) -> None:
    """Tell how often each set of images was scored; what was looked at often flatters a model."""
    from acq_isl.engines.model_file import read_model
    from acq_isl.training.calibrate import write_manifest
    from acq_isl.training.looks import count_looks, read_looks

    found = read_looks(log)
    for each in count_looks((), found):
        out.print(escape(f"{each.dataset}: {each.times} times, last {each.last}: {each.why}"))
    if into is not None:
        file = read_model(into)
        manifest = file.info.manifest
        counted = count_looks(manifest.looks, found)
        write_manifest(file.content, manifest.model_copy(update={"looks": counted}), into)
        out.print(f"written into {escape(str(into))}; 'acq-isl info' shows it")
