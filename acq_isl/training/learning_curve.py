"""What pre-training bought, by the number of units trained on: tables and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from acq_isl.processing.display import PALETTE
from acq_isl.training.score import HeldOutScore

TABLE, UNITS, PICTURE = "transfer.csv", "transfer_units.csv", "transfer.png"
_WIDTH, _HEIGHT, _MARGIN = 420, 300, 46


@dataclass(frozen=True, slots=True)
class Row:
    """One label of one network, trained on ``k`` units, on one held-out unit; without a unit, on all of them.
    ``start`` is ``adapted``, ``from scratch`` or ``as it is``."""

    k: int
    start: str
    seed: int
    score: HeldOutScore
    unit: str = ""


def average_units(rows: Sequence[Row]) -> list[Row]:
    """Mean Pearson and MAE over the units; what the tables have not is that of the first."""
    groups: dict[tuple[int, str, int, str], list[HeldOutScore]] = {}
    for row in rows:
        groups.setdefault((row.k, row.start, row.seed, row.score.label), []).append(row.score)
    means = []
    for (k, start, seed, _), scores in groups.items():
        pearson = float(np.mean([score.pearson for score in scores]))
        mae = float(np.mean([score.mae for score in scores]))
        mean = replace(scores[0], n=len(scores), pearson=pearson, mae=mae)
        means.append(Row(k, start, seed, mean))
    return means


def write_curve(rows: Sequence[Row], folder: Path, title: str, *, stopped: bool) -> None:
    """Write ``transfer.csv``, ``transfer_units.csv`` and ``transfer.png`` of the rows of all units."""
    means = average_units(rows)
    how = "stopped by a held-out unit that is not scored" if stopped else "fixed number of steps"
    head = ["k", "start", "seed", "label"]
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {title}; {how}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*head, "pearson", "mae", "n"])
        table.writerows([*_cells(row), *_values(row), row.score.n] for row in means)
    with (folder / UNITS).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*head, "unit", "pearson", "mae"])
        table.writerows([*_cells(row), row.unit, *_values(row)] for row in rows)
    _draw(means, title, folder / PICTURE)


def _cells(row: Row) -> tuple[int, str, int, str]:
    return row.k, row.start, row.seed, row.score.label


def _values(row: Row) -> tuple[str, str]:
    return f"{row.score.pearson:.4f}", f"{row.score.mae:.4f}"


def find_better(rows: Sequence[Row]) -> str | None:
    """What did better on the held-out units than the network adapted to the most units, by the mean Pearson
    correlation over labels and seeds; None if nothing did."""
    most = max(row.k for row in rows)
    means = {
        start: float(
            np.mean([row.score.pearson for row in rows if row.start == start and row.k in (0, most)])
        )
        for start in dict.fromkeys(row.start for row in rows)
    }
    best = max(means, key=lambda start: means[start])
    if means[best] <= means["adapted"]:
        return None
    does = {"as it is": "the model as it is does", "from scratch": "training from scratch does"}[best]
    found = f"r {means[best]:.3f}, {means['adapted']:.3f}"
    return f"{does} better on the held-out units than adapting to {most}: {found}"


def _draw(rows: Sequence[Row], title: str, path: Path) -> None:
    labels = list(dict.fromkeys(row.score.label for row in rows))
    sheet = Image.new("RGB", (_WIDTH * len(labels), _HEIGHT + 44), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 4), f"Pearson on held-out units; {title}", "black", ImageFont.load_default(14))
    for number, label in enumerate(labels):
        _draw_axes(draw, [row for row in rows if row.score.label == label], (number * _WIDTH, 28), label)
    sheet.save(path, "PNG")


def _draw_axes(draw: ImageDraw.ImageDraw, rows: Sequence[Row], corner: tuple[int, int], label: str) -> None:
    font = ImageFont.load_default(12)
    left, top = corner[0] + _MARGIN, corner[1] + 20
    right, bottom = corner[0] + _WIDTH - 16, corner[1] + _HEIGHT - 40
    ks = sorted({row.k for row in rows})
    values = [row.score.pearson for row in rows]
    low, high = min(0.0, *values), max(0.05, *values) * 1.05

    def place(k: int, value: float) -> tuple[float, float]:
        across = ks.index(k) / (len(ks) - 1) if len(ks) > 1 else 0.5
        return left + across * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

    draw.rectangle((left, top, right, bottom), outline="gray")
    draw.text((left, corner[1] + 2), label, "black", font)
    for k in ks:
        draw.text((place(k, low)[0] - 4, bottom + 4), str(k), "black", font)
    draw.text((left, bottom + 20), "k, units trained on", "gray", font)
    for value in np.linspace(low, high, 4):
        draw.text((corner[0] + 6, place(ks[0], float(value))[1] - 7), f"{value:.2f}", "black", font)
    for number, start in enumerate(dict.fromkeys(row.start for row in rows)):
        colour = PALETTE[number % len(PALETTE)]
        line = []
        for k in ks:
            found = [row.score.pearson for row in rows if (row.start, row.k) == (start, k)]
            line += [place(k, float(np.mean(found)))] if found else []
            for x, y in (place(k, value) for value in found):
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.line(line, fill=colour, width=2)
        draw.text((left + 120 + 90 * number, bottom + 20), start, colour, font)
