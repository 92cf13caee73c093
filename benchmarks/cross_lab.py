"""The cross-lab card: images of several laboratories, against what ships and what learns from one image.

    python benchmarks/cross_lab.py ../shared/data OUT [--models MODEL ...] [--sets NAME ...] [--steps 200]

For each set: the *floor* (smoothed logarithm of the variance through focus; of one plane, of its edges), each
shipped model *as it is* (its score, or its refusal, and whether that was right), *adapted* from one image
(`acq-isl adapt`), a small network trained *from scratch* on the same image (`acq-isl train`), and a *ridge*
regression on local features of it. All are scored on the same other images, or on the rest of the image
where there is only one, through `acq-isl evaluate`. Writes ``cross_lab.json``, ``.md`` and ``.png`` into OUT.
What is done is kept in OUT/work by what it was made of, so a run that was stopped goes on. Nothing is tuned
on any of these images; every run is a look at them, and is written down in OUT/looks.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from cross_lab_picture import Strip, draw_card, make_strip
from cross_lab_ridge import fit_ridge
from cross_lab_sets import GAP_PX, SETS, LabSet, Measure
from numpy.typing import NDArray

from acq_isl.compatibility import Refuse, check
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import AcqIslError, PairRefused, StackRefused
from acq_isl.evaluation.evaluate import evaluate
from acq_isl.evaluation.inputs import find_items
from acq_isl.evaluation.results import MODEL, Report, Score, Settings
from acq_isl.evaluation.scores import score_blocks, score_pixels
from acq_isl.evaluation.worth import agree, resample
from acq_isl.manifest import Manifest
from acq_isl.processing.statistics import pearson
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.training.adapt import adapt
from acq_isl.training.adapt_config import Pairs
from acq_isl.training.config import validate_config
from acq_isl.training.data.pairs import Checks, Recording
from acq_isl.training.data.register import leave_out_holes, register
from acq_isl.training.data.registration import structure
from acq_isl.training.looks import note_look
from acq_isl.training.train import run

_HELD_OF_ONE = 0.25  # of the one image, to the right: what adapting decides by
_CELL_PX, _FLOOR_UM = 40, 1.2


@dataclass(frozen=True)
class Cell:
    """One place of the table: a score with its 95 % interval over ``of``, NaN where there is none, or why
    there is no score. ``right`` is whether taking or refusing was: above the floor, or not."""

    score: float = math.nan
    low: float = math.nan
    high: float = math.nan
    of: str = ""
    says: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Row:
    """A label of a set. ``cells`` by column."""

    set: str
    what: str
    label: str
    images: int
    measure: Measure
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Model:
    """A shipped one."""

    path: str
    sha256: str
    manifest: Manifest

    @property
    def title(self) -> str:
        return f"{self.manifest.name} {self.manifest.version}"


class Bench:
    """One set, its files in a folder of its own, and what was made of them."""

    def __init__(self, lab: LabSet, data: Path, folder: Path, steps: int) -> None:
        self.lab, self._steps = lab, steps
        self.ridge: dict[str, NDArray[np.float32]] = {}
        self._checks = Checks(register_labels=lab.register, shift_refuse_um=1e3)
        self.one, self.judged = lab.parts(data)
        self.labels = tuple(dict.fromkeys(name for _, each in self.judged for name in each.labels))
        content = "".join(each.digest for _, each in (*self.one, *self.judged))
        key = hashlib.sha256(f"{lab} {steps} {content}".encode()).hexdigest()[:16]
        self.folder = folder / f"{lab.name.replace(', ', '-')}-{key}"
        self.planes = len(self.judged[0][1].stack) if self.judged else len(self.one[0][1].stack)

    def write(self) -> None:
        """Every image as OME-TIFF, once."""
        for part, fields in (("one", self.one), ("judged", self.judged)):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
            for number, (_, recording) in enumerate(fields):
                size = recording.pixel_size_um
                about = {"PhysicalSizeX": size, "PhysicalSizeY": size, "PhysicalSizeZ": self.lab.z_step_um}
                images = {"light": recording.stack} | {
                    k: image[None] for k, image in recording.labels.items()
                }
                for name, image in images.items():
                    path = self.folder / part / f"{number:03d}_{name}.ome.tif"
                    if not path.exists():
                        tifffile.imwrite(path, image, ome=True, metadata=about | {"axes": "ZYX"})

    def source(self, part: str) -> dict[str, Any]:
        """For YAML files."""
        labels = {name: f"{{field}}_{name}.ome.tif" for name in self.labels}
        folder = str((self.folder / part).resolve())
        return {"kind": "tiff", "folder": folder, "stack": "{field}_light.ome.tif", "labels": labels}

    def split(self) -> dict[str, Any]:
        """A strip of the one image, to the right, is what adapting decides by."""
        width = min(each.stack.shape[2] for _, each in self.one)
        gap = min(GAP_PX, width // 8)
        cut = round(width * (1 - _HELD_OF_ONE)) // 16 * 16
        return {"by": "columns", "cuts_px": [cut], "held_out": [1], "gap_px": gap, "margin_px": min(gap, 32)}

    @cached_property
    def items(self) -> list[Any]:
        """What is judged, as `acq-isl evaluate` finds it."""
        listed = self.folder / "judged.yaml"
        listed.write_text(yaml.safe_dump([self.source("judged")]), encoding="utf-8")
        nominal = read_model("demo").info.manifest
        return find_items([listed], nominal)

    @property
    def patch_px(self) -> int:
        """Of training patches: half of the narrower side of what is trained on."""
        cut = self.split()["cuts_px"][0] - self.split()["gap_px"] // 2
        side = min(cut, *(min(each.stack.shape[1:]) for _, each in self.one))
        return max(min(side // 16 * 16, 96), 32)

    def from_scratch(self) -> Path:
        """The model file of a small network that has seen the one image only."""
        pixel = self.one[0][1].pixel_size_um
        content = {
            "name": f"{self.lab.name} from scratch", "version": "1", "description": "One image.",
            "planes": self.planes, "pixel_size_um": pixel, "z_step_um": self.lab.z_step_um,
            "high_pass_um": 60 * pixel, "modality": self.lab.light, "polarity": "unknown",
            "labels": [{"name": name, "marker": name} for name in self.labels],
            "data": [self.source("one")], "split": self.split(), "network": {"base": 16},
            "optimisation": {"steps": self._steps, "patch_px": self.patch_px, "average": 0.98},
        }  # fmt: skip
        folder = self.folder / "scratch"
        if not (folder / "model.onnx").exists():
            config = validate_config(content, self.folder / "scratch.yaml")
            run(config.registered() if self.lab.register else config, folder)
        return folder / "model.onnx"

    def adapted(self, model: Model) -> Path:
        """The model file of a shipped model that has learned from the one image; `AcqIslError`: it cannot."""
        folder = self.folder / f"adapted-{model.sha256[:12]}"
        recipe = {"steps": self._steps, "patch_px": self.patch_px}
        content = {"data": [self.source("one")], "split": self.split(), "recipe": recipe}
        known = set(model.manifest.label_names)
        content["labels"] = [{"name": n, "marker": n} for n in self.labels if n not in known]
        new = None if known & set(self.labels) else self.labels[0]
        pairs = self.folder / f"{folder.name}.yaml"
        pairs.write_text(yaml.safe_dump(content), encoding="utf-8")
        if not (folder / "model.onnx").exists():
            adapt(Path(model.path), Pairs(pairs, self.lab.register), new, (len(self.one),), folder)
        return folder / "model.onnx"

    def evaluated(self, model: Path | str) -> Report:
        """On what is judged, whatever the gate says."""
        settings = Settings(truth_range="pairs", threads=1, perturb=False, checks=self._checks)
        return evaluate(model, self.items, settings)

    def seen(self, recording: Recording) -> Recording:
        """As training and evaluation see it."""
        whole = leave_out_holes(recording, self.lab.name)[0]
        return register(whole, self.lab.name, self._checks)[0] if self.lab.register else whole


def as_it_is(bench: Bench, model: Model) -> tuple[Cell, Report | None]:
    """Whether a model takes the judged stacks as they would come to an engine, what it is worth where it can
    predict at all, and whether that was right."""
    fields = bench.judged or bench.one
    stacks = [_as_captured(bench.lab, name, recording) for name, recording in fields]
    refusals = [why for why in (_refusal(model, stack) for stack in stacks) if why]
    shared = [name for name in bench.labels if name in model.manifest.label_names]
    try:
        report = bench.evaluated(model.path) if shared else None
    except (PairRefused, StackRefused):
        report = None
    if refusals:
        # What cannot be predicted is refused rightly; else only where the floor is not reached.
        right = report is None or not _above_floor(report)
        return Cell(says=f"refused: {refusals[0]}", right=right), report
    if report is None:
        return Cell(says=f"taken, shows {', '.join(model.manifest.label_names)}", right=False), None
    return Cell(says="taken", right=_above_floor(report)), report


def _above_floor(report: Report) -> bool:
    return all(found.pearson >= found.floor for found in (agree(report, label) for label in report.labels))


def _as_captured(lab: LabSet, name: str, recording: Recording) -> ZStack:
    size = math.nan if lab.pixel_size_um is None else lab.pixel_size_um
    shape = recording.stack.shape[1], recording.stack.shape[2]
    info = StackInfo(StackKey(0, name, "light"), recording.z_um, shape, size, modality=lab.light)
    return ZStack(info, recording.stack, (0.0,) * len(recording.stack))


def _refusal(model: Model, stack: ZStack) -> str:
    """Why a stack is refused; empty if it is taken."""
    verdict = check(model.manifest, stack.info)
    if isinstance(verdict, Refuse):
        return verdict.reason
    with OnnxEngine(model.path, threads=1) as engine:
        try:
            engine.predict(stack)
        except StackRefused as error:
            return error.what
    return ""


def of_report(bench: Bench, report: Report, label: str) -> Cell:
    """A model's score in an evaluation with its interval; of cells, the correlation of their totals."""
    if bench.lab.measure != "pixels":
        return of_totals([field.labels[label][:2] for field in report.shown])
    own = [score for score in report.scores if (score.label, score.way) == (label, MODEL)]
    if len(own) == 1:  # of the only image blocks of 40 um would be too few, of bacteria
        truth, mean, _ = report.shown[0].labels[label]
        own = [replace(own[0], blocks=score_blocks(mean, truth, None, max(min(truth.shape) // 4, 16)))]
    return interval(own)


def interval(own: Sequence[Score]) -> Cell:
    """Mean r over images with the interval of a bootstrap over images, or blocks of the only one."""
    values = [score.pixels.pearson for score in own]
    found, _, of = resample(own, own, "image")
    low, high = np.quantile(found, (0.025, 0.975)).tolist() if found.size else (math.nan, math.nan)
    return Cell(float(np.nanmean(values)), low, high, of)


def of_totals(images: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Cell:
    """Correlation over cells of the sums of truth and guess in squares of 40 px, bootstrap over cells."""
    truth, guess = (np.concatenate([_totals(pair[at]) for pair in images]) for at in (0, 1))
    rng = np.random.default_rng(0)
    chosen = rng.integers(truth.size, size=(1000, truth.size))
    found = [pearson(truth[rows], guess[rows]) for rows in chosen]
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return Cell(pearson(truth, guess), low, high, f"{truth.size} cells")


def _totals(image: NDArray[np.float32]) -> NDArray[np.float64]:
    rows, columns = (side // _CELL_PX for side in image.shape)
    cut = np.asarray(image[: rows * _CELL_PX, : columns * _CELL_PX], np.float64)
    return cut.reshape(rows, _CELL_PX, columns, _CELL_PX).sum(axis=(1, 3)).ravel()


def ridge_cell(bench: Bench, label: str) -> Cell:
    """A ridge on local features of the one image, scored as a model is."""
    learned = [bench.seen(each) for _, each in bench.one]
    guesser = fit_ridge([(each.stack, each.labels[label], each.valid.get(label)) for each in learned])

    def guess(recording: Recording) -> NDArray[np.float32]:
        image = guesser(recording.stack)
        bench.ridge.setdefault(label, image)
        return image

    return guessed(bench, label, guess)


def floor_cell(bench: Bench, label: str) -> Cell:
    """What needs no learning."""
    return guessed(bench, label, lambda each: structure(each.stack, _FLOOR_UM / each.pixel_size_um))


def guessed(bench: Bench, label: str, guess: Callable[[Recording], NDArray[np.float32]]) -> Cell:
    """How good a guess is that is made from the light alone."""
    scores, totals = [], []
    for name, raw in bench.judged:
        recording = bench.seen(raw)
        image, truth = guess(recording), recording.labels[label].astype(np.float32)
        valid = recording.valid.get(label)
        blocks = score_blocks(image, truth, valid, max(min(truth.shape) // 4, 16))
        scores.append(Score(name, label, "guess", score_pixels(image, truth, valid), blocks=blocks))
        totals.append((truth, image))
    return interval(scores) if bench.lab.measure == "pixels" else of_totals(totals)


def judge(bench: Bench, models: Sequence[Model]) -> tuple[list[Row], dict[str, Report]]:
    """All rows of a set, and the evaluations behind them by column."""
    images = len(bench.judged or bench.one)
    verdicts: dict[str, Cell] = {}
    reports: dict[str, Report] = {}
    for model in models:
        verdicts[f"{model.title} as it is"], report = as_it_is(bench, model)
        if report is not None:
            reports[f"{model.title} as it is"] = report
    if not bench.judged:
        return [Row(bench.lab.name, bench.lab.what, "-", images, bench.lab.measure, verdicts)], {}
    makers = {f"{model.title} adapted": partial(bench.adapted, model) for model in models}
    for column, make in (makers | {"from scratch": bench.from_scratch}).items():
        try:
            reports[column] = bench.evaluated(make())
        except AcqIslError as error:
            why = error.got if isinstance(error, PairRefused) and error.got else error.what
            verdicts[column] = Cell(says=f"cannot: {why.partition(';')[0].rpartition(': ')[2]}")
    rows = []
    for label in bench.labels:
        cells = {"floor": floor_cell(bench, label)}
        for column in (*verdicts, *(name for name in reports if name not in verdicts)):
            report = reports.get(column)
            if report is not None and label in report.labels:
                scored = of_report(bench, report, label)
                about = verdicts.get(column, Cell())
                cells[column] = replace(scored, says=about.says, right=about.right)
            else:
                cells[column] = verdicts.get(column, Cell(says="does not know this label"))
        cells["ridge"] = ridge_cell(bench, label)
        rows.append(Row(bench.lab.name, bench.lab.what, label, images, bench.lab.measure, cells))
    return rows, reports


def shipped() -> list[str]:
    """Every model of the package."""
    folder = Path(str(resources.files("acq_isl.models")))
    return [str(path) for path in sorted(folder.glob("*.onnx"))]


def as_table(rows: Sequence[Row]) -> str:
    """Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    columns = [
        "floor",
        *(c for c in columns if c not in ("floor", "from scratch", "ridge")),
        "from scratch",
        "ridge",
    ]
    lines = ["| set | label | n | " + " | ".join(columns) + " |", "|" + "---|" * (3 + len(columns))]
    for row in rows:
        cells = [as_text(row.cells.get(column, Cell())) for column in columns]
        lines.append(f"| {row.set}: {row.what} | {row.label} | {row.images} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def as_text(cell: Cell) -> str:
    """A cell for people."""
    text = "" if math.isnan(cell.score) else f"{cell.score:.2f}"
    if math.isfinite(cell.low):
        text += f" ({cell.low:.2f} to {cell.high:.2f})"
    judged = {True: ", rightly", False: ", **wrongly**", None: ""}[cell.right]
    said = f"{cell.says}{judged}" if cell.says else ""
    return "; ".join(part for part in (said, text) if part) or "-"


def as_json(rows: Sequence[Row], models: Sequence[Model]) -> str:
    """Everything; numbers that are not known are null."""
    content = {
        "models": {model.title: model.sha256 for model in models},
        "rows": [
            asdict(row) | {"cells": {
                name: {key: _finite(value) for key, value in asdict(cell).items()}
                for name, cell in row.cells.items()
            }}
            for row in rows
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def make_card(
    data: Path, out: Path, sets: Sequence[LabSet], models: Sequence[str], steps: int = 200
) -> list[Row]:
    """Judge the sets that are there, write the card, and return its rows."""
    found = [(path, read_model(path).info) for path in models]
    judged = [Model(path, info.sha256, info.manifest) for path, info in found]
    rows: list[Row] = []
    strips: list[Strip] = []
    for lab in sets:
        where = data / lab.folder
        if not where.is_dir():
            tell(f"skipped {lab.name}: {where} is not here; recorded images are no part of the project")
            continue
        own, strip = judge_once(Bench(lab, data, out / "work", steps), judged, out / "looks.jsonl")
        tell(as_table(own))
        rows += own
        strips += [strip] if strip is not None else []
        (out / "cross_lab.json").write_text(as_json(rows, judged), encoding="utf-8")
        (out / "cross_lab.md").write_text(as_table(rows), encoding="utf-8")
        draw_card(strips, out / "cross_lab.png")
    return rows


def judge_once(bench: Bench, models: Sequence[Model], looks: Path) -> tuple[list[Row], Strip | None]:
    """`judge`, or what it found before of the same images, models and steps."""
    done = (
        bench.folder
        / f"rows-{hashlib.sha256(''.join(m.sha256 for m in models).encode()).hexdigest()[:12]}.json"
    )
    picture = done.with_suffix(".npz")
    if not done.exists():
        bench.write()
        rows, reports = judge(bench, models)
        note_look(looks, bench.lab.name, [model.sha256 for model in models], "cross-lab card")
        if reports:
            make_strip(bench.lab.name, reports, bench.ridge).save(picture)
        done.write_text(as_json(rows, models), encoding="utf-8")
    found = [_row(**row) for row in json.loads(done.read_text(encoding="utf-8"))["rows"]]
    return found, Strip.load(picture, bench.lab.name, found[0].label) if picture.exists() else None


def _row(cells: dict[str, dict[str, Any]], **row: Any) -> Row:
    """As it stands in JSON."""
    known = {
        name: {k: math.nan if v is None and k != "right" else v for k, v in cell.items()}
        for name, cell in cells.items()
    }
    return Row(cells={name: Cell(**cell) for name, cell in known.items()}, **row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="*", default=shipped())
    parser.add_argument("--sets", nargs="*", default=[lab.name for lab in SETS])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    chosen = [lab for lab in SETS if lab.name in options.sets]
    make_card(options.data, options.out, chosen, options.models, options.steps)


if __name__ == "__main__":
    main()
