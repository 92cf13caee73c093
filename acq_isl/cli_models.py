"""Commands about model files: import the published network, evaluate a model, hand one on."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from acq_isl.errors import ModelError

if TYPE_CHECKING:
    from acq_isl.stack import Modality, Polarity

_Z_STEP_UM = 1.5


class Form(StrEnum):
    """Of the published network."""

    EXACT = "exact"
    SINGLE_PHASE = "single-phase"


class Statistic(StrEnum):
    """Of a pixel's distribution over intensities."""

    MEDIAN = "median"
    MEAN = "mean"


class Light(StrEnum):
    """Kinds of transmitted light the published network was trained on."""

    PHASE_CONTRAST = "phase contrast"
    BRIGHTFIELD = "brightfield"
    DIC = "DIC"


def add_model_commands(cli: typer.Typer, out: Console) -> None:
    """Add ``import-reference`` to the command line."""
    cli.command("import-reference")(_import_reference(out))


def _import_reference(out: Console) -> Callable[..., None]:
    def command(  # noqa: PLR0913, PLR0917
        checkpoint: Annotated[Path, typer.Argument(help="Folder of the TensorFlow checkpoint, unpacked.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write (.onnx).")],
        heads: Annotated[
            str | None, typer.Option(help="Labels to keep, with commas.", show_default="all nine")
        ] = None,
        form: Annotated[
            Form, typer.Option(help="'exact' as published; 'single-phase' is twice as fast.")
        ] = Form.EXACT,
        statistic: Annotated[
            Statistic, typer.Option(help="What is shown of each pixel's distribution.")
        ] = Statistic.MEDIAN,
        light: Annotated[Light, typer.Option(help="How the stacks will be lit.")] = Light.PHASE_CONTRAST,
        pixel_size_um: Annotated[
            float | None, typer.Option(min=0.001, help="Of the stacks.", show_default="as published")
        ] = None,
        planes: Annotated[
            int | None, typer.Option(min=1, help="Slices of a stack.", show_default="as published")
        ] = None,
        z_step_um: Annotated[
            float | None,
            typer.Option(min=0.001, help="Between slices.", show_default=f"{_Z_STEP_UM}, a guess"),
        ] = None,
        high_pass_um: Annotated[
            float, typer.Option(min=0, help="Sigma of the background to remove; 0 for flat stacks.")
        ] = 6.0,
    ) -> None:
        """Make a model of the published in-silico-labelling checkpoint (needs the extra 'train')."""
        optics = _published(light, pixel_size_um, planes, z_step_um, high_pass_um)
        try:
            from acq_isl.training.import_reference import Optics, import_reference
        except ModuleNotFoundError as error:
            raise _no_extra("train", error) from error
        chosen = None if heads is None else [head.strip() for head in heads.split(",") if head.strip()]
        shown: Literal["mean", "median"] = "mean" if statistic is Statistic.MEAN else "median"
        manifest = import_reference(
            checkpoint,
            output,
            Optics(*optics),
            heads=chosen,
            form="exact" if form is Form.EXACT else "single phase",
            statistic=shown,
        )
        out.print(f"made {escape(str(output))}: {escape(', '.join(manifest.label_names))}", soft_wrap=True)
        if z_step_um is None and manifest.planes > 1:
            out.print(
                f"[yellow]mind[/] the checkpoint does not say how far apart its planes were; "
                f"{_Z_STEP_UM:g} um is a guess, set --z-step-um if you know better",
                soft_wrap=True,
            )

    return command


def _published(
    light: Light,
    pixel_size_um: float | None,
    planes: int | None,
    z_step_um: float | None,
    high_pass_um: float,
) -> tuple[Modality, Polarity, float, tuple[float, ...], float]:
    """Optics of the published data where nothing else was said."""
    modality: Modality
    polarity: Polarity = "unknown"
    match light:
        case Light.PHASE_CONTRAST:
            modality, polarity, pixel, count = "phase contrast", "dark", 0.3, 13
        case Light.BRIGHTFIELD:
            modality, pixel, count = "brightfield", 0.5, 13
        case Light.DIC:
            modality, pixel, count = "DIC", 0.4, 26
    count = count if planes is None else planes
    step = _Z_STEP_UM if z_step_um is None else z_step_um
    offsets = tuple(step * (plane - (count - 1) / 2) for plane in range(count))
    return modality, polarity, pixel if pixel_size_um is None else pixel_size_um, offsets, high_pass_um


def _no_extra(extra: str, error: ModuleNotFoundError) -> ModelError:
    return ModelError(
        f"this command needs a part of acq-isl that is not installed: {error.name}",
        wanted=f"the extra {extra!r}",
        fix=f"pip install 'acq-isl[{extra}]'",
    )
