"""``acq-isl calibrate``: a model learns this microscope from a few fields, and says what it is good for."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from acq_isl.cli.console import configure_logging, out, progress_bars
from acq_isl.cli.train import progress
from acq_isl.errors import ExperimentError

if TYPE_CHECKING:
    from acq_isl.session.calibration import CalibrationPlan
    from acq_isl.training.cross_fit import CrossFit

commands = typer.Typer()
_NAMES = {"imaging": "imaging"}
_MOST_THREADS = 4


@commands.command("calibrate")
def calibrate(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (.yaml) of the microscope.")],
    truth: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=CHANNEL", help="Stain that shows a label; may be repeated.",
                     show_default="truth of the file"),
    ] = None,
    fields: Annotated[int, typer.Option(min=4, help="How many fields to image.")] = 6,
    exposure: Annotated[
        float | None, typer.Option(min=0.1, help="Of the stains, in ms.", show_default="as in the revisit")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model file (.onnx) to begin with.", show_default="that of the file")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for learning.")] = 14.0,
    average: Annotated[
        bool, typer.Option(help="Average two networks where that helps; predicting takes twice as long.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; an interrupted calibration in it goes on.")
    ] = None,
    swap_into: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Engine of 'acq-isl serve' that is to use it.")
    ] = None,
    sim: Annotated[bool, typer.Option(help="On the simulated microscope, whatever the file names.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before exposing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
) -> None:  # fmt: skip
    """Image a few fields with and without stain, teach a model this microscope, say what it is good for."""
    from acq_isl.engines.model_file import read_model
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.hooks import open_microscope
    from acq_isl.session.calibration import (
        fit_model,
        image_fields,
        imaged_pairs,
        keep_plan,
        plan_calibration,
    )
    from acq_isl.session.preflight import simulated
    from acq_isl.training.cross_fit import CalibrationTask, cross_fit

    configure_logging(verbose)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # says each time that torchvision is absent
    loaded = Experiment.from_yaml(experiment)
    loaded = simulated(loaded) if sim else loaded
    stains = _stains(truth or ()) or loaded.truth
    if not stains:
        raise ExperimentError(
            "nobody says which channel shows which label",
            fix="give --truth nuclei=DAPI, or truth in the file",
        )
    folder = output or Path(f"{experiment.stem}-calibrated")
    file = Path(model or loaded.model_files[0])
    began = time.monotonic()
    with open_microscope(loaded.microscope) as scope:
        manifest = read_model(str(file)).info.manifest
        plan = keep_plan(plan_calibration(loaded, scope, stains, fields, exposure), scope.description, folder)
        nominal = fit_model(plan, manifest)
        out.print(escape(_light(plan, scope.description)))
        if not yes:
            typer.confirm("Expose them?", abort=True)
        with progress_bars(_NAMES, TimeRemainingColumn()) as tell:
            image_fields(plan, scope, folder, lambda *done: tell("imaging", *done))
        about = scope.description
    imaged_s = time.monotonic() - began
    task = CalibrationTask(
        file, imaged_pairs(plan, folder), stains, nominal, about, minutes, seed,
        min(os.cpu_count() or 1, _MOST_THREADS), average,
    )  # fmt: skip
    with progress() as tell_step:
        fit = cross_fit(task, folder, tell_step)
    facts = [("fields", str(fields)), ("microscope", about), ("light of a field", _dose(plan)),
             ("imaged in", f"{imaged_s / 60:.1f} min"), ("steps", str(fit.steps)),
             ("took", f"{(time.monotonic() - began) / 60:.1f} min")]  # fmt: skip
    _finish(fit, facts, swap_into)


def _stains(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        label, equals, channel = (part.strip() for part in text.partition("="))
        if not (label and equals and channel):
            raise ExperimentError(f"--truth {text} names no label and channel", wanted="nuclei=DAPI")
        found[label] = channel
    return found


def _dose(plan: CalibrationPlan) -> str:
    """The light of one field, for people."""
    return ", ".join(f"{count} x {ms:g} ms {channel}" for channel, count, ms in plan.light)


def _light(plan: CalibrationPlan, scope: str) -> str:
    """What is going to be exposed."""
    fields = len(plan.fields)
    total_s = fields * sum(count * ms for _, count, ms in plan.light) / 1e3
    doubts = "".join(f"\nmind: {doubt}" for doubt in plan.doubts)
    told = f"{scope}: {fields} fields, each exposed {_dose(plan)}; {total_s:.1f} s of light in all"
    return f"{told}.{doubts}"


def _finish(fit: CrossFit, facts: Sequence[tuple[str, str]], address: str | None) -> None:
    from acq_isl.engines import describe
    from acq_isl.evaluation.calibration_page import advise, remarks, write_calibration

    use = f"In the experiment file: model: {fit.model.resolve()}"
    if address is not None:
        from acq_isl.stream.swap import swap

        swapped = swap(address, str(fit.model.resolve()))
        use += f". The engine at {address} uses it now, in place of {swapped.old.name}"
    else:
        use += f". In an engine that runs: acq-isl swap ADDRESS {fit.model.resolve()}"
    page = write_calibration(fit, describe(str(fit.model)), facts, use)
    for advice in map(advise, fit.labels):
        out.print(f"\n[bold]{escape(advice.label)} (predicted)[/]")
        for line in advice.use:
            out.print(f"  [green]use it[/] {escape(line)}")
        for line in advice.avoid:
            out.print(f"  [red]not[/]    {escape(line)}")
    for line in remarks(fit):
        out.print(escape(line))
    out.print(f"\nmodel  {escape(str(fit.model))}\npage   {escape(str(page))}\n{escape(use)}")
