"""Commands about models and engines: what a model expects, how fast engines are, whether int8 may be used."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from acq_isl.cli.console import out, show_table

if TYPE_CHECKING:
    from acq_isl.cli.bench import Row
    from acq_isl.cli.gpu_kit.steps import Row as Proof

commands = typer.Typer()

Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads for inference.")]


@commands.command("info")
def info(
    model: Annotated[str, typer.Argument(help="Model file (.onnx), or 'demo'.")] = "demo",
) -> None:
    """Say what a model expects and predicts."""
    from acq_isl.engines import describe

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in describe(model).lines():
        table.add_row(name, escape(value))
    show_table(table)


@commands.command("bench")
def bench(
    models: Annotated[list[str] | None, typer.Argument(help="Model files (.onnx), or 'demo'.")] = None,
    side: Annotated[list[int] | None, typer.Option(min=1, help="Sides of square fields in pixels.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured predictions of each engine.")] = 7,
    threads: Threads = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw the latencies into this file.")] = None,
    estimates: Annotated[
        Path | None,
        typer.Option(help="With a GPU: also write estimates for GPUs and what this one took (Markdown)."),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Have a card prove itself, step by step.")] = False,
    report_: Annotated[Path, typer.Option("--report", help="With --gpu: the file it leaves.")] = Path(
        "gpu.html"
    ),
    minutes: Annotated[float, typer.Option(min=0.01, help="With --gpu: no step begins after so long.")] = 10,
) -> None:
    """Measure every installed engine: latency, memory, difference to fp32, where the time goes.

    With --gpu: plans, parity, latency, throughput, memory, and known traps of a GPU, into one file; without
    a card as far as that goes. Exit code 1: a step failed.
    """
    if gpu:
        _prove(models or ["demo"], tuple(side or ()), rounds, report_, minutes)
        return
    from acq_isl.cli.bench import SIDES_PX, as_json, bench, plot
    from acq_isl.engines.roofline import report

    def announce(text: str) -> None:
        if not as_json_:
            out.print(f"measuring {escape(text)}")

    rows = bench(models or ["demo"], side or SIDES_PX, rounds=rounds, threads=threads, tell=announce)
    if as_json_:
        sys.stdout.write(as_json(rows) + "\n")
    else:
        show_table(_table(rows))
        for text in dict.fromkeys(f"* {row.backend}: {row.note}" for row in rows if row.note):
            out.print(escape(text))
    if png is not None:
        plot(rows, png)
    _estimates(report([asdict(row) for row in rows]), estimates, silent=as_json_)


def _prove(models: list[str], sides: tuple[int, ...], rounds: int, report: Path, minutes: float) -> None:
    """Run the GPU kit with one model; what it found is in the report, and told as it comes."""
    from tempfile import TemporaryDirectory

    from acq_isl.cli.gpu_kit.card import SIDES_PX, Card
    from acq_isl.cli.gpu_kit.kit import Wish, run_kit
    from acq_isl.cli.gpu_kit.page import count_verdicts
    from acq_isl.engines import describe
    from acq_isl.engines.model_file import SHIPPED

    if len(models) > 1:
        raise typer.BadParameter("the kit looks at one model at a time")
    describe(models[0])

    def tell(row: Proof) -> None:
        color = {"passed": "green", "failed": "red bold"}.get(row.verdict, "yellow")
        title = escape(f"{row.group}: {row.title}")
        out.print(f"[{color}]{row.verdict:14}[/] {title}: {escape(row.found)}")

    model = models[0] if models[0] in SHIPPED else str(Path(models[0]).resolve())
    with TemporaryDirectory(prefix="acq-isl-gpu-", ignore_cleanup_errors=True) as folder:
        card = Card(model, Path(folder), sides or SIDES_PX, rounds)
        rows = run_kit(card, Wish(report.resolve(), minutes), tell)
    counts = count_verdicts(rows)
    out.print(f"{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}; report {escape(str(report))}")
    if "failed" in counts:
        raise typer.Exit(1)


def _estimates(text: str, path: Path | None, *, silent: bool) -> None:
    """Show and write what a GPU took beside the estimates; there is nothing to show without one."""
    if text and not silent:
        out.print(f"\nestimates, and what was measured here (docs/engines.md):\n\n{escape(text)}")
    if path is not None and text:
        path.write_text(text + "\n", encoding="utf-8")
    elif path is not None:
        out.print("no GPU was measured, so there is nothing to put beside the estimates")


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        "x: times as fast as onnxruntime fp32, median of rounds; Pearson, max |d|: mean of the worst label "
        "against it; shares of prepare / tiling / upload / compute / download / decode"
    )
    titles = ("engine", "field", "p50 ms", "p95 ms", "x", "Mpx/s", "MiB", "Pearson", "max |d|", "shares %")
    for title in titles:
        table.add_column(title, justify="left" if title == "engine" else "right", no_wrap=title != "engine")
    for row in rows:
        if not row.shares_ms:
            table.add_row(f"{row.backend} *", f"{row.side_px or ''}", "failed")
            continue
        total = sum(row.shares_ms.values())
        shares = "/".join(f"{100 * value / total:.0f}" for value in row.shares_ms.values())
        table.add_row(
            f"{row.backend} *" if row.note else row.backend,
            str(row.side_px),
            f"{row.p50_ms:.0f}",
            f"{row.p95_ms:.0f}",
            f"{row.ratio:.2f}",
            f"{row.megapixels_per_s:.2f}",
            f"{row.peak_mib:.0f}",
            f"{row.least_pearson:.5f}",
            f"{row.largest_difference:.2g}",
            shares,
        )
    return table


@commands.command("accept-int8")
def accept_int8(
    model: Annotated[str, typer.Argument(help="Model file (.onnx), or 'demo'.")],
    stacks: Annotated[list[Path], typer.Argument(help="z-stacks of yours, TIFF of (planes, rows, columns).")],
    above: Annotated[float | None, typer.Option(help="Predicted intensity that makes a nucleus.")] = None,
    pixel_size_um: Annotated[float | None, typer.Option(min=0.001, help="Else the model's.")] = None,
    threads: Threads = None,
) -> None:
    """Make an int8 form of a model, judge it on your stacks, and use it from then on if it is as good."""
    from acq_isl.engines.int8.accuracy import ABOVE
    from acq_isl.engines.int8.store import int8_folder
    from acq_isl.engines.model_file import read_model
    from acq_isl.engines.openvino.int8 import accept_int8
    from acq_isl.readers.read import read_stack

    file = read_model(model)
    read = [read_stack(path, file.info.manifest, pixel_size_um) for path in stacks]
    note = accept_int8(file, read, above=ABOVE if above is None else above, threads=threads)
    for label, value in note.pearson.items():
        out.print(f"{escape(label)}: correlation with fp32 {value:.4f}")
    if note.f1 is not None:
        out.print(f"nuclei: F1 {note.f1:.3f} against the {note.nuclei} found in fp32")
    if note.accepted:
        out.print(f"[green]accepted[/]; used from now on; kept in {escape(str(int8_folder(file)))}")
    else:
        out.print(f"[yellow]not accepted[/]: {escape(note.reason)}")
        raise typer.Exit(1)
