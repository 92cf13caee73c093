"""Experiment files: begun by a few questions, explained and checked before anybody runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from acq_isl.cli.console import out, show_table
from acq_isl.errors import ExperimentError, suggest

if TYPE_CHECKING:
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.experiment.starter import Answers
    from acq_isl.hooks import OpenMicroscope
    from acq_isl.manifest import Manifest
    from acq_isl.rules.label_names import Labels
    from acq_isl.session.explain import Cost
    from acq_isl.view.web.form import FormQuestions

commands = typer.Typer()
_CONTRADICTORY = 2


@commands.command()
def explain(experiment: Annotated[Path, typer.Argument(help="Experiment file (.yaml).")]) -> None:
    """Say every rule of an experiment in plain words, what is odd in it, and what it costs at worst.

    Nothing is opened or moved; functions that are named are imported. Exit codes: 0, with or without
    remarks; 2 if a rule contradicts itself or can never act, so that no run is started; 1 if the file cannot
    be read.
    """
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.session.explain import explain as explain_rules
    from acq_isl.session.explain import plan_without_scope
    from acq_isl.session.functions import lint_functions

    loaded = Experiment.from_yaml(experiment)
    labels, note = _labels(loaded)
    found = explain_rules(loaded, plan_without_scope(loaded), labels)
    remarks = (*lint_functions(loaded), *found.lints)
    for sentence in found.sentences:
        out.print(escape(sentence))
    _show_costs(found.costs)
    if note:
        out.print(f"[yellow]mind[/] {escape(note)}")
    marks = {"error": "[red bold]wrong[/]", "warning": "[yellow]mind[/]"}
    for remark in remarks:
        out.print(f"{marks[remark.level]} {escape(str(remark))}")
    if any(remark.level == "error" for remark in remarks):
        raise typer.Exit(_CONTRADICTORY)


def _labels(experiment: Experiment) -> tuple[Labels | None, str]:
    """What the models of an experiment predict, or why that is not known."""
    from acq_isl.errors import ModelError
    from acq_isl.experiment.experiment import LocalEngine
    from acq_isl.session.preflight import local_labels

    if not isinstance(experiment.engine, LocalEngine):
        return None, "labels were not checked: the engine is elsewhere; 'acq-isl run --dry-run' asks it"
    try:
        return local_labels(experiment), ""
    except ModelError as error:
        return None, f"labels were not checked: {error}"


def _show_costs(costs: tuple[Cost, ...]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("light at worst", "channel", "ms per field", "times", "s in all"):
        table.add_column(title, justify="left" if title in ("light at worst", "channel") else "right")
    for cost in costs:
        table.add_row(
            escape(cost.rule),
            escape(cost.channel),
            f"{cost.ms_per_field:g}",
            str(cost.times),
            f"{cost.total_s:.2f}",
        )
    show_table(table)
    total = sum(cost.total_s for cost in costs)
    out.print(f"in all at most {total:.1f} s of exposure, and so much time at least; moves come on top")


@commands.command()
def new(
    file: Annotated[Path, typer.Argument(help="What to write; it must not exist yet.")] = Path(
        "experiment.yaml"
    ),
    stage: Annotated[
        str | None, typer.Option(help="survey, watch or screen.", show_default="is asked")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run.", show_default="as the stage")] = None,
    microscope: Annotated[
        str | None,
        typer.Option(help="running (Micro-Manager is open) or simulated.", show_default="is asked"),
    ] = None,
    model: Annotated[str, typer.Option(help="Model file (.onnx), or 'demo'.")] = "demo",
    label: Annotated[str | None, typer.Option(help="What of the model to look at.")] = None,
    group: Annotated[str, typer.Option(help="Configuration group of the channels.")] = "Channel",
    transmitted: Annotated[str | None, typer.Option(help="Preset without stain.")] = None,
    fluorescence: Annotated[str | None, typer.Option(help="Preset that shows the label truly.")] = None,
    exposure_ms: Annotated[float | None, typer.Option(min=0.001, help="Without stain.")] = None,
    fluorescence_ms: Annotated[float | None, typer.Option(min=0.001, help="In fluorescence.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what is usual.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Ask in the browser, by a form.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the form.", show_default="8765, or a free one")
    ] = None,
) -> None:
    """Ask a few questions and write a commented experiment file that passes the dry run.

    Channels are those that the microscope has. Options answer questions; --yes answers the rest.
    """
    from acq_isl.engines import describe
    from acq_isl.experiment.experiment import RunningMicroManager, SimulatedMicroscope
    from acq_isl.experiment.starter import STAGES, Answers, Channel
    from acq_isl.hooks import open_microscope

    if file.exists():
        raise ExperimentError(f"{file} is there already", fix="give another name, or move it away")
    ask = _Questions(yes or page)
    if stage is None and not (yes or page):
        for key, what in STAGES.items():
            out.print(f"  {key:>6}  {what}")
    chosen = ask.choice("stage of the work", stage, [*STAGES], "survey")
    kind = _Questions(yes).choice("microscope", microscope, ["running", "simulated"], "running")
    manifest = describe(model).manifest
    looked_at = ask.choice("label", label, list(manifest.label_names), manifest.label_names[0])
    settings = RunningMicroManager() if kind == "running" else SimulatedMicroscope()
    with open_microscope(settings) as scope:
        out.print(escape(scope.description))
        light, stain = _channels(ask, scope, group, manifest, looked_at, (transmitted, fluorescence))
        core = scope.core
        answers = Answers(
            stage=chosen,
            name=name or f"my first {chosen}",
            microscope=kind,
            model=model,
            manifest=manifest,
            label=looked_at,
            group=group,
            transmitted=Channel(light, ask.number(f"exposure of {light} (ms)", exposure_ms, 10.0)),
            fluorescence=Channel(stain, ask.number(f"exposure of {stain} (ms)", fluorescence_ms, 50.0)),
            place_um=(core.get_x_position(), core.get_y_position(), core.get_position()),
        )
        if page:
            _ask_on_page(file, answers, scope, port)
        else:
            _tell_written(file, _write(file, answers, scope)[1])


def _ask_on_page(file: Path, usual: Answers, scope: OpenMicroscope, port: int | None) -> None:
    """Have the rest answered in a browser; ``usual`` stands in the form to begin with."""
    from acq_isl.experiment.starter import STAGES, Channel
    from acq_isl.hooks import Hardware
    from acq_isl.view.web.form import FormAnswers, Written
    from acq_isl.view.web.server import serve_form

    presets, labels = Hardware(scope.core).presets(usual.group), usual.manifest.label_names
    doubts: list[str] = []

    def write(given: FormAnswers) -> Written:
        ask = _Questions(silent=True)
        stage = ask.choice("stage of the work", given.stage, [*STAGES], "survey")
        label = ask.choice("label", given.label, list(labels), labels[0])
        light = ask.choice("channel without stain", given.transmitted, list(presets), presets[0])
        stain = ask.choice(f"channel that shows {label}", given.fluorescence, list(presets), presets[0])
        if light == stain:
            raise ExperimentError(f"{light} cannot be the channel without stain and that of the stain")
        answers = replace(
            usual, stage=stage, name=given.name, label=label,
            transmitted=Channel(light, given.transmitted_ms),
            fluorescence=Channel(stain, given.fluorescence_ms),
        )  # fmt: skip
        text, found = _write(file, answers, scope)
        doubts.extend(found)
        return Written(text=text, doubts=found)

    questions = _questions(file, usual, scope.description, presets)
    if serve_form(questions, write, lambda address: out.print(f"fill in the form at  {address}"), port):
        _tell_written(file, tuple(doubts))
    else:
        out.print("nothing was written")


def _questions(file: Path, usual: Answers, scope: str, presets: tuple[str, ...]) -> FormQuestions:
    from acq_isl.experiment.starter import STAGES
    from acq_isl.view.web.form import FormAnswers, FormQuestions

    labels = usual.manifest.label_names
    stains = {name: _stain(presets, usual.manifest, name) for name in labels}
    first = FormAnswers(
        stage=usual.stage,
        name=usual.name,
        label=usual.label,
        transmitted=usual.transmitted.preset,
        transmitted_ms=usual.transmitted.exposure_ms,
        fluorescence=usual.fluorescence.preset,
        fluorescence_ms=usual.fluorescence.exposure_ms,
    )
    return FormQuestions(
        file=str(file), microscope=scope, labels=labels,
        stages={str(key): what for key, what in STAGES.items()},
        stains={name: stain for name, stain in stains.items() if stain}, presets=presets, usual=first,
    )  # fmt: skip


def _stain(presets: Sequence[str], manifest: Manifest, label: str) -> str | None:
    """The preset that is called as the marker of a label."""
    marker = next(one.marker for one in manifest.labels if one.name == label)
    return next((one for one in presets if marker and one.lower() == marker.lower()), None)


def _write(file: Path, answers: Answers, scope: OpenMicroscope) -> tuple[str, tuple[str, ...]]:
    """Write an experiment file, once it has passed the dry run; its text, and what the dry run minds."""
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.experiment.starter import write_experiment
    from acq_isl.files import write_whole
    from acq_isl.session.preflight import prepare

    if file.exists():
        raise ExperimentError(f"{file} is there already", fix="give another name, or move it away")
    text = write_experiment(answers, str(file))
    _, doubts = prepare(Experiment.from_text(text, str(file)), scope)
    write_whole(file, text)
    return text, doubts


def _tell_written(file: Path, doubts: tuple[str, ...]) -> None:
    for doubt in doubts:
        out.print(f"[yellow]mind[/] {escape(doubt)}")
    named = escape(str(file))
    out.print(f"{named} is written and passes the dry run; next: acq-isl explain {named}")


class _Questions:
    """Asks at the terminal what no option has answered; or, if nobody is to be asked, takes the usual."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent

    def choice(self, what: str, given: str | None, valid: list[str], usual: str) -> Any:
        """One of some names; ExperimentError for another."""
        answer = given
        if answer is None:
            asked = f"{what} ({', '.join(valid)})"
            answer = usual if self._silent else typer.prompt(asked, default=usual)
        if answer not in valid:
            raise ExperimentError(f"there is no {what} {answer!r}", fix=suggest(answer, valid))
        return answer

    def number(self, what: str, given: float | None, usual: float) -> float:
        if given is not None or self._silent:
            return usual if given is None else given
        return float(typer.prompt(what, default=usual, type=float))


def _channels(
    ask: _Questions,
    scope: OpenMicroscope,
    group: str,
    manifest: Manifest,
    label: str,
    given: tuple[str | None, str | None],
) -> tuple[str, str]:
    """Presets without stain and with, of those that the microscope has."""
    from acq_isl.hooks import Hardware

    presets = list(Hardware(scope.core).presets(group))
    usual = next((one for one in presets if one.lower().startswith(_TRANSMITTED)), presets[0])
    light = ask.choice("channel without stain", given[0], presets, usual)
    others = [one for one in presets if one != light]
    if not others:
        raise ExperimentError(
            f"the group {group} has no other preset than {light}", fix="make one, or name --group"
        )
    stain = _stain(others, manifest, label) or others[0]
    return light, ask.choice(f"channel that shows {label}", given[1], others, stain)


_TRANSMITTED = ("phase", "bf", "bright", "dic", "trans", "ph")
