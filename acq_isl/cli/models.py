"""Commands about model files: import the published network, evaluate a model, hand one on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from acq_isl.cli.console import out
from acq_isl.cli.serve import Views
from acq_isl.cli.train import Register
from acq_isl.errors import ModelError, PairRefused

if TYPE_CHECKING:
    from acq_isl.evaluation.results import Settings
    from acq_isl.stack import Modality, Polarity

commands = typer.Typer()

_Z_STEP_UM = 1.5
_GUESSED = (
    f"the checkpoint does not say how far apart its planes were; {_Z_STEP_UM:g} um is a guess, "
    "set --z-step-um if you know better"
)


Form = Literal["exact", "single-phase"]
Statistic = Literal["median", "mean"]
SplitUnit = Literal["field", "well"]
Light = Literal["phase contrast", "brightfield", "DIC"]
Model = Annotated[str, typer.Argument(help="Model file (.onnx), or 'demo'.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads for inference.")]

Checkpoint = Annotated[Path, typer.Argument(help="Folder of the TensorFlow checkpoint, unpacked.")]
NewModel = Annotated[Path, typer.Option("--output", "-o", help="Model file to write (.onnx).")]
Heads = Annotated[str | None, typer.Option(help="Labels to keep, with commas.", show_default="all nine")]
TheForm = Annotated[Form, typer.Option(help="'exact' as published; 'single-phase' is twice as fast.")]
Shown = Annotated[Statistic, typer.Option(help="What is shown of each pixel's distribution.")]
TheLight = Annotated[Light, typer.Option(help="How the stacks will be lit.")]
PixelSize = Annotated[
    float | None, typer.Option(min=0.001, help="Of the stacks.", show_default="as published")
]
Planes = Annotated[int | None, typer.Option(min=1, help="Slices of a stack.", show_default="as published")]
ZStep = Annotated[
    float | None, typer.Option(min=0.001, help="Between slices.", show_default=f"{_Z_STEP_UM}, a guess")
]
HighPass = Annotated[float, typer.Option(min=0, help="Sigma of the background to remove; 0 for flat stacks.")]

Pairs = Annotated[
    list[Path],
    typer.Option(help="Folder of z-stacks with their stains, or a .yaml list of sources; repeatable."),
]
Results = Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and the report.")]
Unit = Annotated[SplitUnit, typer.Option(help="What was held out of training; a row of the table.")]
Truth = Annotated[list[str] | None, typer.Option(help="LABEL=STAIN, where names do not tell; repeatable.")]
Objects = Annotated[
    list[str] | None, typer.Option(help="Label with separate objects; repeatable.", show_default="nuclei")
]
FileZStep = Annotated[
    float | None, typer.Option(min=0.001, help="Between planes, for files that do not say it.")
]
Registration = Annotated[
    float, typer.Option(min=0, help="How far stain and transmitted light may be apart; sets the ceiling.")
]
OwnRange = Annotated[
    bool, typer.Option("--own-range", help="Scale the truth by these pairs, not by the model file.")
]

LooksLog = Annotated[
    Path | None,
    typer.Option(
        metavar="LOG", help="Note this look at these images in a log, for the card: see acq-isl looks."
    ),
]

Package = Annotated[
    Path | None, typer.Option("--output", "-o", help="Package (.zip) or model (.onnx) to write.")
]
Tags = Annotated[
    bool, typer.Option("--tags", help="Write an .onnx of an older version again, with tags of its graph.")
]
Bioimageio = Annotated[bool, typer.Option("--bioimageio", help="As a package of bioimage.io.")]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain", help="As an .onnx file that takes an image alone, for ONNX Runtime, OpenVINO, ..."
    ),
]
Triton = Annotated[
    Path | None,
    typer.Option("--triton", metavar="DIR", help="As a model repository for Triton Inference Server."),
]
Authors = Annotated[list[str] | None, typer.Option(help="Who stands for the package; repeatable.")]
Citations = Annotated[list[str] | None, typer.Option(help="TEXT=DOI; repeatable.")]


@commands.command("import-reference")
def import_reference(
    checkpoint: Checkpoint,
    output: NewModel,
    heads: Heads = None,
    form: TheForm = "exact",
    statistic: Shown = "median",
    light: TheLight = "phase contrast",
    pixel_size_um: PixelSize = None,
    planes: Planes = None,
    z_step_um: ZStep = None,
    high_pass_um: HighPass = 6.0,
) -> None:
    """Make a model of the published in-silico-labelling checkpoint (needs the extra 'train')."""
    optics = _published(light, pixel_size_um, planes, z_step_um, high_pass_um)
    try:
        from acq_isl.training.reference.convert import Optics, import_reference
    except ModuleNotFoundError as error:
        raise _no_extra("train", error) from error
    chosen = None if heads is None else [head.strip() for head in heads.split(",") if head.strip()]
    made = import_reference(
        checkpoint,
        output,
        Optics(*optics),
        heads=chosen,
        form="exact" if form == "exact" else "single phase",
        statistic=statistic,
    )
    out.print(f"made {escape(str(output))}: {escape(', '.join(made.label_names))}")
    if z_step_um is None and made.planes > 1:
        out.print(f"[yellow]note[/] {_GUESSED}")


@commands.command("evaluate")
def evaluate(
    model: Model,
    pairs: Pairs,
    output: Results,
    split_unit: Unit = "field",
    truth: Truth = None,
    objects: Objects = None,
    z_step_um: FileZStep = None,
    registration_um: Registration = 1.0,
    own_range: OwnRange = False,
    register: Register = False,
    views: Views = 1,
    looks: LooksLog = None,
    threads: Threads = None,
) -> None:
    """Hold a model's predictions against real stains: one table and one page with pictures."""
    from acq_isl.evaluation.results import Settings
    from acq_isl.training.data.pairs import Checks

    settings = Settings(
        split_unit=split_unit,
        truth_of=_pairs_of_names(truth or []),
        objects=tuple(objects or ()),
        truth_range="pairs" if own_range else "model",
        registration_um=registration_um,
        threads=threads,
        views=views,
        checks=Checks(register_labels=register),
    )
    leaks = _evaluated(model, (pairs, z_step_um), settings, output)
    if looks is not None:
        from acq_isl.training.looks import note_look

        note_look(looks, ", ".join(path.name for path in pairs), [model], "acq-isl evaluate")
    if leaks:
        raise typer.Exit(1)


def _evaluated(model: str, pairs: tuple[list[Path], float | None], settings: Settings, folder: Path) -> bool:
    """Evaluate and write; whether something was trained on."""
    from acq_isl.engines import describe
    from acq_isl.evaluation.evaluate import evaluate
    from acq_isl.evaluation.inputs import find_items
    from acq_isl.evaluation.page import as_markdown, write_evaluation

    paths, z_step_um = pairs
    items = find_items(paths, describe(model).manifest, z_step_um)
    report = evaluate(model, items, settings, lambda name: out.print(f"evaluating {escape(name)}"))
    page, *_ = write_evaluation(folder, report)
    out.print(escape(as_markdown(report)))
    out.print(f"report {escape(str(page))}")
    return bool(report.leaks)


@commands.command("export")
def export(
    model: Model,
    output: Package = None,
    bioimageio: Bioimageio = False,
    plain: Plain = False,
    tags: Tags = False,
    triton: Triton = None,
    author: Authors = None,
    cite: Citations = None,
) -> None:
    """Hand a model on to other programs, or tag one of an older version."""
    if triton is not None:
        from acq_isl.engines.fleet.repository import write_repository

        made = write_repository(model, triton)
        out.print(
            f"made {escape(str(made))}; serve it: tritonserver --model-repository {escape(str(triton))}"
        )
        return
    if output is None:
        raise ModelError("it was not said where to write", wanted="--output FILE", fix="add -o FILE")
    if tags:
        from acq_isl.training.export.tags import write_tagged

        write_tagged(model, output)
        out.print(f"wrote {escape(str(output))}: the same model, which engines may compute in fp16 and bf16")
        return
    if plain:
        from acq_isl.training.export.image_model import write_plain

        write_plain(model, output)
        out.print(f"wrote {escape(str(output))}: uint16 planes (n, z, y, x) in, mean and spread out")
        return
    if not bioimageio:
        raise ModelError(
            "it was not said what to make of the model",
            wanted="--plain, --bioimageio or --tags",
            got="nothing",
            fix="add --plain or --bioimageio; to run it with acq-isl the .onnx file itself is all you need",
        )
    from acq_isl.training.export.bioimageio import export_bioimage

    cited = [(text, doi) for text, _, doi in (c.rpartition("=") for c in cite or ())]
    export_bioimage(model, output, author or (), cited)
    package = escape(str(output))
    out.print(f"made {package}; try it with: bioimageio test {package}")


def _pairs_of_names(texts: list[str]) -> dict[str, str]:
    """``LABEL=STAIN`` as a mapping."""
    named = dict(text.partition("=")[::2] for text in texts)
    if not all(label and stain for label, stain in named.items()):
        raise PairRefused(
            "a truth is not named as it must be",
            wanted="--truth LABEL=STAIN",
            got=" ".join(texts),
            fix="for example --truth nuclei=hoechst",
        )
    return named


def _published(
    light: Light,
    pixel_size_um: float | None,
    planes: int | None,
    z_step_um: float | None,
    high_pass_um: float,
) -> tuple[Modality, Polarity, float, tuple[float, ...], float]:
    """Optics of the published data where nothing else was said."""
    pixel, count = {"phase contrast": (0.3, 13), "brightfield": (0.5, 13), "DIC": (0.4, 26)}[light]
    polarity: Polarity = "dark" if light == "phase contrast" else "unknown"
    count = count if planes is None else planes
    step = _Z_STEP_UM if z_step_um is None else z_step_um
    offsets = tuple(step * (plane - (count - 1) / 2) for plane in range(count))
    return light, polarity, pixel if pixel_size_um is None else pixel_size_um, offsets, high_pass_um


def _no_extra(extra: str, error: ModuleNotFoundError) -> ModelError:
    return ModelError(
        f"this command needs a part of acq-isl that is not installed: {error.name}",
        wanted=f"the extra {extra!r}",
        fix=f'pip install "acq-isl[{extra}]"',
    )
