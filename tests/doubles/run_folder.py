"""A whole run on a microscope of a few lines: real session, ledger, store, plan; predictions by formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from acq_isl.engines import describe
from acq_isl.events import Event
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Optics, Place, cycles
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.session.evidence import LEDGERS, STORE, note_run, vouch_stored
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.session.session import Session, SessionTools
from acq_isl.stack import Outcome, Prediction, StackInfo, StackRequest, Uint16Image
from acq_isl.storage.decision_log import Ledger
from acq_isl.storage.prediction_store import PredictionStore

PX = 16
TEXT = """
name: small
overview:
  grid_plan: {rows: 1, columns: 6, mode: row_wise}
  z_plan: {range: 2, step: 1}
  channels: [{config: Phase, exposure: 10}]
choose: {k: 2, measurement: {kind: mean_intensity, label: dendrites}}
revisit: {channels: [{config: MAP2, exposure: 50}]}
triggers:
  - name: bright
    when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.45}
    do: {kind: image, channels: [DAPI], exposure_ms: 5}
    at_most: 2
"""
BRIGHT = (0.2, 0.9, 0.1, 0.6, 0.5, 0.3)
"""Mean of each label in the fields, in the order of the plan."""


def index_of(request: StackRequest) -> int:
    return int(request.key.position.rpartition("_")[2])


def predict(request: StackRequest, bright: float | None = None) -> Prediction:
    """Every label is as bright as the table says, with a texture of its own."""
    manifest, number = MODEL.manifest, index_of(request)
    info = StackInfo(request.key, request.z_um, (PX, PX), 0.3, request.x_um, request.y_um, 10.0)
    noise = np.random.default_rng(number).normal(0, 0.01, (len(manifest.labels), PX, PX))
    level = BRIGHT[number] if bright is None else bright
    mean = (noise - noise.mean((1, 2), keepdims=True) + level).astype(np.float32)
    spread, name = np.full_like(mean, 0.1), manifest.name
    return Prediction(info, manifest.label_names, mean, spread, MODEL.sha256, name, "fake cpu fp32")


MODEL = describe("demo")


class Scope:
    """Takes nothing but notes; the engine answers one stack behind."""

    def __init__(
        self,
        answer: Callable[[StackRequest], Outcome] = predict,
        stain: Callable[[StackRequest], Uint16Image] | None = None,
    ) -> None:
        self.taken: list[StackRequest] = []
        self._stain = stain
        self._waiting: list[Outcome] = []
        self._answer = answer

    def acquire(self, request: StackRequest) -> None:
        self.taken.append(request)
        if request.predict:
            self._waiting.append(self._answer(request))

    def set_preset(self, group: str, preset: str) -> None:
        """Nothing to set."""

    def images(self, request: StackRequest) -> Uint16Image:
        if self._stain is None:
            return np.full((len(request.z_um), PX, PX), 100 + index_of(request), np.uint16)
        return self._stain(request)

    def poll(self) -> list[Outcome]:
        ready, self._waiting = self._waiting[:-1], self._waiting[-1:]
        return ready

    def drain(self, timeout_s: float) -> list[Outcome]:
        ready, self._waiting = self._waiting, []
        return ready


@dataclass
class SmallRun:
    """A run in ``folder``; ``changes`` replace keys of the experiment."""

    folder: Path
    text: str = TEXT
    scope: Scope = field(default_factory=Scope)
    events: list[Event] = field(default_factory=list)

    def run(self, tools: Mapping[str, object] | None = None) -> Session:
        self.folder.mkdir(parents=True)
        experiment, labels = (
            Experiment.from_text(self.text),
            Labels([RunModel("", MODEL.manifest, MODEL.sha256)]),
        )
        plan = cycles(experiment.overview, Place(0.0, 0.0, 0.0, (10.0, 10.0)), Optics())
        (self.folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
        SavedPlan(started="2026-11-28T12:00:00+01:00", scope="a fake", cycles=plan).write(self.folder)
        with Ledger(self.folder / LEDGERS[0]) as ledger:
            note = vouch_stored(ledger.note)
            with PredictionStore(self.folder / STORE, labels.store_colors, on_stored=note) as store:
                note_run(ledger, self.folder, experiment, labels, {})
                parts = SessionTools(
                    self.scope,
                    self.scope,
                    store,
                    ledger,
                    lambda *_: "called",
                    self.events.append,
                    labels=labels,
                )
                session = Session(experiment, plan, replace(parts, **dict(tools or {})))
                session.run()
        return session
