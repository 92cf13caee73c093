"""Commands about engines in processes of their own: serve models, replace one, predict what was left over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from acq_isl.cli.build import field_size
from acq_isl.cli.console import configure_logging, counted, out
from acq_isl.cli.sim import faulty
from acq_isl.errors import ExperimentError, ModelError

if TYPE_CHECKING:
    from acq_isl.engines.fallback import Ladder
    from acq_isl.engines.gate import Policy
    from acq_isl.engines.model_size import Work
    from acq_isl.session.predict_spool import Models
    from acq_isl.stream.model_registry import ServedModel

commands = typer.Typer()

Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads for inference.")]
Backend = Annotated[
    str, typer.Option(help="'auto' (measured once), 'onnxruntime', 'openvino', 'tensorrt', ...")
]
Keys = Annotated[Path | None, typer.Option(help="Folder of keys, to go to or from other computers.")]
Views = Annotated[
    int,
    typer.Option(
        min=1, max=8, help="Average over so many views of each stack, mirrored and turned about: "
        "each takes as long as a prediction.",
    ),
]  # fmt: skip
_Served = Annotated[
    list[str] | None,
    typer.Option(
        help="Model file (.onnx) or 'demo', as FILE or NAME=FILE; repeat it for several models.",
        show_default="demo",
    ),
]
_Field = Annotated[
    str | None, typer.Option(metavar="PX|ROWSxCOLUMNS", help="The camera's field, where it is known.")
]
_Gate = Annotated[
    Literal["refuse", "warn"],
    typer.Option(help="What becomes of stacks that look unlike the model's training set."),
]
ModelFiles = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model file, as FILE or NAME=FILE.", show_default="the run's"),
]
Connect = Annotated[
    str | None, typer.Option(help="Address of a running 'acq-isl serve' to predict with instead.")
]
_DEFAULT = "tcp://127.0.0.1:5599"
FIELD_PX = (1024, 1024)  # where nobody says


def load(
    model: str,
    *,
    threads: int | None = None,
    backend: str = "auto",
    field_px: tuple[int, int] | None = None,
    gate: Policy = "refuse",
    views: int = 1,
    ladder: Ladder | None = None,
) -> ServedModel:
    """Make a model ready to be served, given as ``FILE`` or ``NAME=FILE``; ModelError or EngineError.

    The rest as for `acq_isl.engines.load_engine`; predictions are averaged over ``views``.
    """
    from acq_isl.engines import load_engine
    from acq_isl.stream.model_registry import ServedModel, named

    name, file = named(model)
    engine = load_engine(file, threads=threads, backend=backend, field_px=field_px, gate=gate, ladder=ladder)
    engine.use_views(views)
    name = name or engine.manifest.name
    return ServedModel(engine, name, engine.model.sha256, engine.name, engine.rungs)


def pick_size(models: Sequence[str], smaller: str, deadline_ms: float, work: Work) -> tuple[str, str]:
    """Of a model and a smaller one the best that keeps the deadline, and why.

    ExperimentError for several models, ModelError if one could not take the place of the other.
    """
    from acq_isl.engines import describe
    from acq_isl.engines.model_size import SHARE, choose_size, measure_size
    from acq_isl.stream.model_registry import changes, named

    if len(models) > 1:
        raise ExperimentError("--smaller stands in for one model", got=", ".join(models), fix="serve one")
    files = list(dict.fromkeys((named(models[0])[1], smaller)))
    old, new = (describe(file).manifest for file in (files[0], files[-1]))
    if changed := changes(old, new):
        raise ModelError(
            f"{smaller} cannot take the place of {files[0]}",
            wanted="the same labels, planes, pixel size and optics",
            got="; ".join(changed),
            fix="name another smaller model, or leave it out",
        )
    chosen, why = choose_size([measure_size(file, work, SHARE * deadline_ms) for file in files], deadline_ms)
    return models[0] if chosen.model == files[0] else chosen.model, why


@commands.command("serve")
def serve(
    model: _Served = None,
    bind: Annotated[str, typer.Option(help="Address to answer at.")] = _DEFAULT,
    threads: Threads = None,
    backend: Backend = "auto",
    field: _Field = None,
    gate: _Gate = "refuse",
    views: Views = 1,
    keys: Keys = None,
    announce: Annotated[Path | None, typer.Option(hidden=True)] = None,
    stop_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
    fault: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    skip: Annotated[int, typer.Option(min=0, hidden=True)] = 0,
    alone: Annotated[
        bool, typer.Option("--alone", help="Let no other engine take over from one that fails.")
    ] = False,
    remark: Annotated[str, typer.Option(hidden=True)] = "",
    smaller: Annotated[
        str | None,
        typer.Option(help="Smaller model of the same labels, served instead if only it keeps the deadline."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0.001, help="With --smaller: ms that a prediction may take.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
) -> None:
    """Predict for clients until stopped with Ctrl-C."""
    from acq_isl.engines.fallback import Ladder
    from acq_isl.engines.model_size import Work
    from acq_isl.protocols import SelectedEngine
    from acq_isl.stream.process import Parent, lower_priority, serve
    from acq_isl.stream.server import ServerSettings
    from acq_isl.stream.sockets import server_keys

    configure_logging(verbose)
    lower_priority()  # before the engines make their threads, which inherit it
    allowed = None if keys is None else server_keys(keys)
    field_px = field_size(field) if field else None
    ladder = Ladder(skip, alone, remark)

    def load_here(name: str) -> ServedModel:
        model = load(
            name,
            threads=threads,
            backend=backend,
            field_px=field_px,
            gate=gate,
            views=views,
            ladder=ladder,
        )
        return replace(model, engine=faulty(model.engine, fault))

    names = model or ["demo"]
    if smaller is not None and deadline is not None:
        work = Work(field_px or FIELD_PX, views, threads, backend, skip)
        name, why = pick_size(names, smaller, deadline, work)
        out.print(escape(why))
        if name not in names:
            names, ladder = [name], replace(ladder, remark="; ".join(filter(None, (remark, why))))
    models = [load_here(name) for name in names]
    for served in models:
        out.print(f"{escape(served.name)} at {bind} on {escape(served.backend)}; stop with Ctrl-C")
        if isinstance(served.engine, SelectedEngine) and served.engine.why:
            out.print(escape(served.engine.why))
    settings = ServerSettings(keys=allowed, load=load_here)
    serve(models, bind, settings, Parent(announce, stop_with_stdin))


@commands.command("swap")
def swap(
    address: Annotated[str, typer.Argument(help="Of a running 'acq-isl serve'.")],
    model: Annotated[str, typer.Argument(help="Model file (.onnx) on the server's computer, or 'demo'.")],
    name: Annotated[
        str, typer.Option(help="Model to replace.", show_default="of the same name, or the only one")
    ] = "",
    keys: Keys = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="Longest time for loading.")] = 900.0,
) -> None:
    """Have a running server replace a model between two stacks; if that fails, the old one stays."""
    from acq_isl.stream.sockets import client_keys, is_local
    from acq_isl.stream.swap import swap

    if is_local(address) and Path(model).exists():
        model = str(Path(model).resolve())  # the server may run in another folder
    out.print(f"loading {escape(model)} beside what is served")
    pair = None if keys is None else client_keys(keys)
    done = swap(address, model, name, keys=pair, timeout_s=timeout_s)
    for what, offer in (("was", done.old), ("is", done.new)):
        title = f"{offer.name} {offer.model_sha256[:12]}".strip()
        out.print(f"{what:>4} {escape(title)} on {escape(offer.engine)}")
    for change in done.changes:
        out.print(f"[yellow]note[/] {escape(change)}")


def predict_waiting(folder: Path, predicting: AbstractContextManager[Models], keep: bool = False) -> None:
    """Predict what waits in a spool; exit code 1 if anything is left."""
    from acq_isl.session.predict_spool import PredictedStack, predict_spool, waiting

    paths, store = waiting(folder)
    out.print(f"{counted(len(paths), 'stack')} wait in {escape(str(folder))}")
    if not paths:
        return

    def show(stack: PredictedStack) -> None:
        mark = "[green]done[/]" if stack.done else "[yellow]kept[/]"
        for words in stack.results:
            out.print(f"{mark} {escape(stack.path.name)}: {escape(words)}")

    with predicting as models:
        results = predict_spool(folder, models, keep=keep, report=show)
    left = sum(not stack.done for stack in results)
    out.print(f"{len(results) - left} predicted into {escape(str(store))}, {left} left")
    if left and not keep:
        raise typer.Exit(1)


@commands.command("recover")
def recover(
    folder: Annotated[Path, typer.Argument(help="Run folder, or a spool.")],
    choose: Annotated[bool, typer.Option("--choose", help="Also rank the fields, as the run would.")] = False,
    keep: Annotated[bool, typer.Option(help="Leave the stacks of a spool where they are.")] = False,
    model: ModelFiles = None,
    connect: Connect = None,
    keys: Keys = None,
    threads: Threads = None,
    backend: Backend = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
) -> None:
    """Finish a run that was killed: predict what is measured or waits, choose if asked, write the report."""
    from acq_isl.session.recover import recover

    configure_logging(verbose)
    predicting = predicting_for(folder, model, connect, keys, (threads, backend))
    if not (folder / "experiment.yaml").exists():
        predict_waiting(folder, predicting, keep)
        return
    with predicting as models:
        done = recover(folder, models, choose=choose, keep=keep, tell=lambda text: out.print(escape(text)))
    if done.report is None:
        out.print("nothing to recover: what is measured is predicted or refused, and the report is there")
    else:
        words = f"{counted(done.predicted, 'stack')} predicted, {done.refused} refused, {done.left} left"
        chosen = f"; {counted(done.chosen, 'field')} chosen" if choose else ""
        out.print(f"[bold]{words}[/]{chosen}")
        out.print(f"report   {escape(str(done.report))}")
    if done.not_imaged:
        out.print(f"{done.not_imaged} fields were not imaged; 'acq-isl run EXPERIMENT --resume RUN' goes on")
    if done.left:
        raise typer.Exit(1)


@contextmanager
def predicting_for(
    folder: Path,
    model: Sequence[str] | None,
    connect: str | None,
    keys: Path | None,
    here: tuple[int | None, str],
) -> Iterator[Models]:
    """Who predicts for a run that is over: a running server, or models here (threads, back end)."""
    from acq_isl.session.predict_spool import LocalModels, ServedModels
    from acq_isl.stream.connection import ConnectionSettings
    from acq_isl.stream.model_registry import ModelRegistry
    from acq_isl.stream.sockets import client_keys

    with ExitStack() as cleanup:
        if connect:
            link = ConnectionSettings(keys=None if keys is None else client_keys(keys))
            yield cleanup.enter_context(ServedModels(connect, link))
            return
        loaded = []
        for name in model or _models_of(folder):
            loaded.append(load(name, threads=here[0], backend=here[1]))
            cleanup.callback(loaded[-1].engine.close)
        yield LocalModels(ModelRegistry(loaded))


def _models_of(folder: Path) -> tuple[str, ...]:
    """The models of a run's experiment; ExperimentError if that cannot be told."""
    from acq_isl.experiment.experiment import Experiment

    for place in (folder, folder.resolve().parent):
        if (place / "experiment.yaml").exists():
            return Experiment.from_yaml(place / "experiment.yaml").model_files
    raise ExperimentError(
        f"{folder} does not say which model it was for", fix="name it: acq-isl recover FOLDER --model FILE"
    )


@commands.command()
def keys(folder: Annotated[Path, typer.Argument(help="New folder for the keys.")]) -> None:
    """Make keys, so that an engine can be reached from other computers."""
    from acq_isl.stream.sockets import make_keys

    make_keys(folder)
    out.print(f"made {folder}")
    out.print("to the engine's computer:  server.key_secret, client.key   acq-isl serve --keys FOLDER")
    out.print(
        "to the microscope:         client.key_secret, server.key   engine: {kind: remote, keys: FOLDER}"
    )
