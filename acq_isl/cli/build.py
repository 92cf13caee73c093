"""Commands about plans for TensorRT: build one, list them, delete them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from acq_isl.cli.console import out, show_table

if TYPE_CHECKING:
    from acq_isl.engines.model_file import ModelFile
    from acq_isl.engines.tensorrt.api import BuildStep
    from acq_isl.engines.tensorrt.build import BuiltPlan
    from acq_isl.engines.tensorrt.cuda import GpuInfo
    from acq_isl.engines.tensorrt.plan_cache import PlanNote

commands = typer.Typer()

_MIB = 2**20
_SIZE = re.compile(r"(\d+)(?:[xX](\d+))?")
_Flavour = Literal["auto", "tensorrt", "rtx"]
_Precision = Literal["fp16", "fp32", "int8"]
_Profile = Literal["live", "bulk"]


def field_size(text: str) -> tuple[int, int]:
    """``1024`` or ``2160x2560``, rows first."""
    match = _SIZE.fullmatch(text.strip())
    rows, columns = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(rows, columns) < 16:
        raise typer.BadParameter(f"{text!r} is no field; give rows x columns in pixels, such as 2160x2560")
    return rows, columns


@commands.command("build")
def build(
    model: Annotated[str, typer.Argument(help="Model file (.onnx), or 'demo'.")] = "demo",
    flavour: Annotated[_Flavour, typer.Option(help="'rtx' needs no GPU to build.")] = "auto",
    precision: Annotated[_Precision, typer.Option(help="'int8' needs --stack.")] = "fp16",
    profile: Annotated[
        _Profile, typer.Option(help="'live': the camera's field at once; 'bulk': batches of tiles.")
    ] = "live",
    field: Annotated[
        str, typer.Option(metavar="PX|ROWSxCOLUMNS", help="The camera's field, where it is fastest.")
    ] = "1024",
    target: Annotated[
        list[str] | None, typer.Option(help="GPU to build for, such as sm89; else all RTX GPUs.")
    ] = None,
    stack: Annotated[
        list[Path] | None,
        typer.Option(help="For int8: z-stack of yours, TIFF of (planes, rows, columns)."),
    ] = None,
    above: Annotated[float | None, typer.Option(help="Predicted intensity that makes a nucleus.")] = None,
) -> None:
    """Build a model for TensorRT, so that no stack has to wait for it."""
    from acq_isl.engines.model_file import read_model
    from acq_isl.engines.tensorrt.build import build
    from acq_isl.engines.tensorrt.options import BuildOptions

    file = read_model(model)
    options = BuildOptions(flavour, precision, profile, tuple(target or ()), field_size(field))
    if precision == "int8":
        _judge(file, stack or [], above)
    gpu = _gpu()
    with _progress() as progress:
        built = build(file, options, gpu=gpu, progress=progress)
    _say(built, gpu)


def _judge(file: ModelFile, paths: list[Path], above: float | None) -> None:
    """Make the int8 form from stacks, if there are any; without, the form made before is taken."""
    from acq_isl.engines.int8.accuracy import ABOVE
    from acq_isl.engines.tensorrt.int8 import make_form
    from acq_isl.readers.read import read_stack

    if not paths:
        return
    stacks = [read_stack(path, file.info.manifest) for path in paths]
    form = make_form(file, stacks, above=ABOVE if above is None else above)
    for label, value in form.pearson.items():
        out.print(f"{escape(label)}: correlation of int8 with fp32 {value:.4f}")
    if form.f1 is not None:
        out.print(f"nuclei: F1 {form.f1:.3f} against the {form.nuclei} found in fp32")


def _gpu() -> GpuInfo | None:
    from acq_isl.engines.tensorrt.cuda import Device
    from acq_isl.errors import EngineError

    try:
        with Device() as device:
            return device.info
    except EngineError:
        return None  # whether that matters is known to who builds


@contextmanager
def _progress() -> Iterator[Callable[[BuildStep], None]]:
    """One bar for the outermost phase, which begins first; the phase at work in words beside it."""
    columns = (TextColumn("building"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=out, transient=True) as bars:
        task: list[TaskID] = []
        outermost: list[str] = []

        def advance(step: BuildStep) -> None:
            if not task:
                task.append(bars.add_task("", total=step.total))
                outermost.append(step.phase)
            if step.phase == outermost[0]:
                bars.update(task[0], completed=step.done, total=step.total)
            else:
                bars.update(task[0], description=escape(f"{step.phase} {step.done}/{step.total}"))

        yield advance


def _say(built: BuiltPlan, gpu: GpuInfo | None) -> None:
    note, (least, usual, most) = built.note, built.note.key.shapes["stack"]
    began = f"built in {note.built_s:.1f} s" if built.fresh else f"there already, built {note.built_at[:16]}"
    out.print(f"{escape(note.model)}: plan {began}, {note.plan_bytes / _MIB:.1f} MiB")
    key = note.key
    where = ", ".join(key.targets) or key.gpu or "all GPUs of the flavour"
    out.print(f"for {escape(f'{key.flavour} {key.version}, {key.precision}, {key.profile}, {where}')}")
    out.print(f"tiles of {_px(least)} to {_px(most)} pixels, fastest at {usual[0]} of {_px(usual)}")
    if note.agreement:
        found = ", ".join(f"{name} {_figures(value)}" for name, value in note.agreement.items())
        out.print(f"against fp32, on this processor: {escape(found)}")
    if key.precision == "int8" and "rtx" in key.flavour:
        out.print(
            "[yellow]note[/] TensorRT for RTX stores int8, but hardly computes in it: fp16 may be as fast"
        )
    out.print(f"kept in {escape(str(built.path))}")
    if gpu is not None:
        out.print("acq-isl uses it from now on; 'acq-isl bench' measures it")
    else:
        out.print(
            "there is no NVIDIA GPU here; on the computer with one, 'acq-isl plans' names the folder to copy "
            "it to, with the .json of the same name",
            soft_wrap=True,
        )


def _figures(value: float) -> str:
    return f"{value:.2g}" if value < 0.9 else f"{value:.6f}"


def _px(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[3]}"


plans = typer.Typer(help="List the plans that were built for TensorRT, or delete them.")
commands.add_typer(plans, name="plans")


@plans.callback(invoke_without_command=True)
def listed(context: typer.Context) -> None:
    from acq_isl.engines.tensorrt.plan_cache import PlanStore

    if context.invoked_subcommand is not None:
        return
    store = PlanStore()
    found = store.list()
    if found:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("model", "plan", "TensorRT", "MiB", "built", "file"):
            table.add_column(title, overflow="fold")
        for plan in found:
            size, file = f"{plan.size_bytes / _MIB:.1f}", plan.path.stem
            if plan.note is None:
                table.add_row("[red]damaged[/], built again when needed", "", "", size, "", file)
            else:
                model, shape, runtime = _words(plan.note)
                table.add_row(model, shape, runtime, size, plan.note.built_at[:10], file)
        show_table(table)
    out.print(f"{len(found)} plans in {escape(str(store.folder))}")


@plans.command("clear")
def clear(
    model: Annotated[
        str | None, typer.Argument(help="Only plans of this model.", show_default="all models")
    ] = None,
) -> None:
    """Delete plans and what was kept with them; they are built again when they are needed."""
    from acq_isl.engines import describe
    from acq_isl.engines.tensorrt.plan_cache import PlanStore

    files, size = PlanStore().clear(None if model is None else describe(model).sha256)
    out.print(f"deleted {files} files, {size / _MIB:.1f} MiB")


def _words(note: PlanNote) -> tuple[str, str, str]:
    """Model, plan and runtime."""
    key = note.key
    where = ", ".join(key.targets) or key.gpu
    runtime = f"{key.flavour.removeprefix('tensorrt_')} {key.version} {where}"
    plan = f"{key.precision} {key.profile} {_px(key.shapes['stack'][1])}"
    return escape(note.model), plan, escape(runtime)
