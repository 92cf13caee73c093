"""``acq-isl calibrate``: a model learns this microscope from a few fields, and says what it is good for."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from acq_isl.cli.console import configure_logging, out, progress_bars
from acq_isl.cli.train import progress
from acq_isl.errors import ExperimentError

if TYPE_CHECKING:
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.session.calibration import CalibrationPlan
    from acq_isl.training.cross_fit import CrossFit
    from acq_isl.training.data.pairs import Nominal

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
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.session.calibration import imaged_pairs
    from acq_isl.session.preflight import simulated
    from acq_isl.training.cross_fit import CalibrationTask, cross_fit

    configure_logging(verbose)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # says each time that torchvision is absent
    loaded = Experiment.from_yaml(experiment)
    loaded = simulated(loaded) if sim else loaded
    stains = _stains(truth or ()) or loaded.truth
    folder = output or Path(f"{experiment.stem}-calibrated")
    file = Path(model or loaded.model_files[0])
    began = time.monotonic()
    plan, nominal, scope = _image(loaded, file, folder, _Wish(stains, fields, exposure, yes))
    imaged_s = time.monotonic() - began
    pairs = imaged_pairs(plan, folder)
    task = CalibrationTask(file, pairs, stains, nominal, scope, minutes, seed, _free_cores(), average)
    with progress() as tell:
        fit = cross_fit(task, folder, tell)
    facts = [("fields", str(fields)), ("microscope", scope), ("light of a field", _dose(plan)),
             ("imaged in", f"{imaged_s / 60:.1f} min"), ("steps", str(fit.steps)),
             ("took", f"{(time.monotonic() - began) / 60:.1f} min")]  # fmt: skip
    _finish(fit, facts, swap_into)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to be imaged: stain by label, how many fields, for how long, and whether to ask first."""

    stains: dict[str, str]
    fields: int
    exposure_ms: float | None
    yes: bool


def _image(
    experiment: Experiment, model: Path, folder: Path, wish: _Wish
) -> tuple[CalibrationPlan, Nominal, str]:
    """Image what the folder has not yet: the plan, the stacks it will be for, the microscope."""
    from acq_isl.engines.model_file import read_model
    from acq_isl.hooks import StopSignals, open_microscope
    from acq_isl.session.calibration import fit_model, image_fields, keep_plan, plan_calibration

    if not wish.stains:
        raise ExperimentError(
            "nobody says which channel shows which label",
            fix="give --truth nuclei=DAPI, or truth in the file",
        )
    manifest = read_model(str(model)).info.manifest
    with StopSignals(), open_microscope(experiment.microscope) as scope:
        plan = plan_calibration(experiment, scope, wish.stains, wish.fields, wish.exposure_ms)
        nominal = fit_model(plan, manifest)
        out.print(escape(_light(plan, scope.description)))
        if not wish.yes:
            typer.confirm("Expose them?", abort=True)
        plan = keep_plan(plan, scope.description, folder)
        with progress_bars(_NAMES, TimeRemainingColumn()) as tell:
            image_fields(plan, scope, folder, lambda *done: tell("imaging", *done))
        return plan, nominal, scope.description


def _free_cores() -> int:
    """Threads that would wait for each other are slower than one."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(min(round((os.cpu_count() or 1) - busy), _MOST_THREADS), 1)


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
