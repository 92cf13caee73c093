"""An experiment file to begin with, from a few answers: commented, and good for a dry run. Pure."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from typing import Literal, assert_never

from acq_isl.manifest import Manifest
from acq_isl.stack import NetworkLabel

Stage = Literal["survey", "watch", "screen"]
STAGES: dict[Stage, str] = {
    "survey": "find the best fields, and image them in fluorescence",
    "watch": "a time-lapse that acts on what changes",
    "screen": "wells compared with each other",
}


@dataclass(frozen=True, slots=True)
class Channel:
    """A preset of the microscope, and how long it exposes."""

    preset: str
    exposure_ms: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What somebody was asked about an experiment that is not written yet."""

    stage: Stage
    name: str
    microscope: Literal["running", "simulated"]
    model: str
    manifest: Manifest
    label: str
    group: str
    transmitted: Channel
    fluorescence: Channel
    place_um: tuple[float, float, float]
    """Where the stage stands: x, y, z."""


_HEAD = string.Template("""\
# yaml-language-server: $$schema=experiment.schema.json
# For completion in an editor: acq-isl schema > experiment.schema.json   Every key: docs/experiment.md
# Look first: acq-isl explain $file, and acq-isl run $file --dry-run
name: $name

# running: Micro-Manager is open, its ZMQ server on; or simulated
microscope: {kind: $microscope}
# Of the transmitted light, as the model was trained with; polarity: dense matter is dark or bright in focus
optics: {modality: $modality, polarity: $polarity}

# demo, or the path of a model file; it predicts $labels
model: $model
""")

_OVERVIEW = string.Template("""
overview:                            # a useq-schema sequence: what is imaged without stain
$places
  z_plan: {range: $range, step: $step}     # um, as the model wants it
  channels: [{group: $group, config: $transmitted, exposure: $transmitted_ms}]     # ms
""")

_GRID = (
    "  grid_plan: {rows: 2, columns: 2}   # around where the stage is; fields are as large as the camera's"
)
_TIMES = "  time_plan: {interval: 600, loops: 24}     # s: every ten minutes, for four hours"
_PLATE = string.Template("""\
  # A plate instead: stage_positions: {plate: 96-well, a1_center_xy: [0, 0], selected_wells: [[0, 0], [0, 1]]}
  stage_positions:                   # um; a field of a well is named after it, as A1_000
    - {name: A1, x: $x0, y: $y0}
    - {name: A2, x: $x1, y: $y0}
    - {name: B1, x: $x0, y: $y1}
    - {name: B2, x: $x1, y: $y1}
  grid_plan: {rows: 1, columns: 2}   # in each well""")

_RULES: dict[Stage, string.Template] = {
    "survey": string.Template("""
choose:                              # of all fields of the overview, once all are predicted
  k: 1                               # how many
  measurement: $measurement

revisit:                             # what is imaged at the chosen ones; z from the middle of their stack
  channels: [{group: $group, config: $fluorescence, exposure: $fluorescence_ms}]
"""),
    "watch": string.Template("""
schedule:                            # which fields are imaged at which time point
  kind: when
  when:                              # it has grown since its last visit
    {measurement: {change: {of: $measurement}}, above: 0, unit: $unit}
  else_every: 3                      # all others at every third time point

triggers:                            # as soon as a prediction is there, between two stacks
  - name: it grows
    when:
      all:                           # or any, not: see docs/rules.md. for: 2 is at two visits in a row
        - {measurement: $measurement, above: $low, unit: $unit, for: 2}
        - {measurement: {change: {of: $measurement}}, above: 0, unit: $unit}
    do: {kind: image, group: $group, channels: [$fluorescence], exposure_ms: $fluorescence_ms}
    at_most: 4                       # times in the whole run: what light it may cost
    deadline_s: 120                  # later it is told, and not done
"""),
    "screen": string.Template("""
choose:                              # the best fields of each well, so that every well is seen
  kind: quota
  each: 1
  measurement: $measurement

revisit:
  channels: [{group: $group, config: $fluorescence, exposure: $fluorescence_ms}]

triggers:
  - name: a well stands out
    scope: well                      # decided once all fields of a well are predicted
    statistic: mean                  # of its fields
    when: {measurement: $measurement, above: $high, unit: $unit}
    do: {kind: image, group: $group, channels: [$fluorescence], exposure_ms: $fluorescence_ms}
    at_most: 4
"""),
}

_TAIL = string.Template("""
# This channel shows the label truly: the report holds them together
truth: {$label: $fluorescence}

limits:                              # nothing moves or is exposed beyond these; widen them with care
  x_um: [$x_low, $x_high]
  y_um: [$y_low, $y_high]
  z_um: [$z_low, $z_high]
  exposure_ms: $most_ms
""")


def write_experiment(answers: Answers, file: str) -> str:
    """The text of an experiment file that will be called ``file``."""
    words = {key: _quoted(value) for key, value in _words(answers).items()} | {
        "file": file,
        "labels": ", ".join(answers.manifest.label_names),
        "measurement": _measurement(answers)[0],
        "unit": _measurement(answers)[1],
    }
    words["places"] = _places(answers.stage).safe_substitute(words)
    parts = (_HEAD, _OVERVIEW, _RULES[answers.stage], _TAIL)
    return "".join(part.substitute(words) for part in parts)


def _quoted(value: object) -> str:
    """A value as YAML has it: names that could be something else in quotes."""
    if isinstance(value, float | int):
        return f"{value:g}"
    text = str(value)
    plain = text.replace(" ", "").replace("_", "").replace("-", "")
    is_name = plain.isalnum() and not plain[0].isdigit() and text.lower() not in _NOT_TEXT
    return text if is_name else json.dumps(text)


_NOT_TEXT = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})


def _words(answers: Answers) -> dict[str, object]:
    x, y, z = (round(value) for value in answers.place_um)
    manifest = answers.manifest
    depth_um = manifest.z_offsets_um[-1] - manifest.z_offsets_um[0]
    low, high = _levels(answers)
    return {
        "name": answers.name, "microscope": answers.microscope, "model": answers.model,
        "label": answers.label,
        "modality": manifest.modality, "polarity": manifest.polarity,
        "range": round(depth_um, 3), "step": round(manifest.z_step_um, 3) or 1,
        "group": answers.group, "transmitted": answers.transmitted.preset,
        "transmitted_ms": answers.transmitted.exposure_ms, "fluorescence": answers.fluorescence.preset,
        "fluorescence_ms": answers.fluorescence.exposure_ms,
        "most_ms": max(answers.transmitted.exposure_ms, answers.fluorescence.exposure_ms, 100.0),
        "x0": x - 500, "x1": x + 500, "y0": y - 500, "y1": y + 500,
        "x_low": x - 2000, "x_high": x + 2000, "y_low": y - 2000, "y_high": y + 2000,
        "z_low": z - 50, "z_high": z + 50, "low": low, "high": high,
    }  # fmt: skip


def _places(stage: Stage) -> string.Template:
    match stage:
        case "survey":
            return string.Template(_GRID)
        case "watch":
            return string.Template(f"{_GRID}\n{_TIMES}")
        case "screen":
            return _PLATE
        case _:
            assert_never(stage)


def _measurement(answers: Answers) -> tuple[str, str]:
    """What is measured of the label, and its unit: objects have a number, networks a length."""
    label = _quoted(answers.label)
    if NetworkLabel(answers.label) in answers.manifest.counting:
        return f"{{kind: length, label: {label}}}", "mm"
    return f"{{kind: object_count, label: {label}, above: 0.2}}", "objects"


def _levels(answers: Answers) -> tuple[float, float]:
    """Numbers to begin with, in the unit of `_measurement`; the first survey tells better ones."""
    return (0.5, 2.0) if NetworkLabel(answers.label) in answers.manifest.counting else (5, 20)
