"""A run with each planted fault: what happened. python benchmarks/faults.py prints a Markdown table.

Every run is the whole way on a simulated microscope, small: three fields of 13 planes, predicted by an engine
in a process of its own, the best one revisited in two stains.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import acq_isl
from acq_isl.errors import AcqIslError
from acq_isl.events import Event
from acq_isl.experiment.faults import parse_fault
from acq_isl.record import RunRecord

EXPERIMENT = """
name: practice
microscope: {kind: simulated, specimen: {kind: synthetic, seed: 1}, camera_px: [192, 192]}
optics: {modality: phase contrast, polarity: dark}
overview:
  grid_plan: {rows: 1, columns: 3}
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
engine: {kind: local, threads: 1}
choose: {k: 1, measurement: {kind: mean_intensity, label: dendrites}}
revisit: {channels: [{config: DAPI, exposure: 20}, {config: MAP2, exposure: 20}]}
truth: {nuclei: DAPI, dendrites: MAP2}
prediction_timeout_s: 20
"""
FAULTS = (
    "",
    "focus-drift:60",
    "stage-backlash:4",
    "settle-time:300",
    "lamp-flicker:0.05",
    "dropped-frames:at=20",
    "stuck-shutter:after=13",
    "preset-fails:DAPI,times=3",
    "preset-fails:DAPI",
    "hardware-timeout:XY,times=1,wait_s=1,after=13",
    "hardware-timeout:XY,after=13",
    "hardware-timeout:Camera,wait_s=600,after=20",
    "engine-slow:1500",
    "engine-dead:after=1",
    "engine-wrong:error,after=1",
    "engine-wrong:nan,after=1",
    "engine-wrong:noise,after=1",
)


def row(text: str, folder: Path) -> str:
    """One run as a row of the table."""
    experiment = acq_isl.Experiment.from_text(EXPERIMENT + f"output: {folder.as_posix()}\n")
    faults = (parse_fault(text),) if text else ()
    microscope = experiment.microscope.model_copy(update={"faults": faults})
    heard = [time.monotonic()]

    def watch(event: Event) -> None:
        heard.append(time.monotonic())

    began = time.monotonic()
    try:
        record = acq_isl.run(experiment.model_copy(update={"microscope": microscope}), watch=watch).record
    except AcqIslError as error:
        quiet_s = time.monotonic() - max(heard[:-1])
        return (
            f"| `{text}` | **stopped**, {quiet_s:.1f} s after the last sign of life: {_short(str(error))} | |"
        )
    return f"| `{text or 'none'}` | to the end in {time.monotonic() - began:.0f} s | {_counts(record)} |"


def _counts(record: RunRecord) -> str:
    c = record.counts
    words = [f"{c.captured} slices, {c.predicted} predicted"]
    words += [
        f"{n} {what}" for n, what in ((c.refused, "refused"), (c.spooled, "waiting"), (c.lost, "LOST")) if n
    ]
    words += [f"{one.label} r {one.pearson:.2f}" for one in record.comparisons]
    if record.scorecard is not None:
        card = record.scorecard
        words.append(f"{card.aside_um.median:.1f} um aside, {card.out_of_focus_um.median:.1f} um in z")
    return "; ".join([*words, *map(_short, record.warnings)])


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= 220 else text[:217] + "..."


def main() -> None:
    chosen = sys.argv[1:] or FAULTS
    sys.stdout.write("| fault | the run | data |\n|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for text in chosen:
            sys.stdout.write(row(text, Path(folder)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
