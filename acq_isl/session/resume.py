"""Go on with a run that was cut off: in its own folder, with what is left of its plan.

New images go into a data set of their own (``measured_2``, ...): what was measured before is only read.
Stacks that were measured and not predicted go to the engine; one that was cut off is imaged again.
"""

from __future__ import annotations

import time
from pathlib import Path

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.events import EventHandler, FieldImaged, Predicted, Seen
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import Cycle
from acq_isl.files import write_whole
from acq_isl.rules.light import LightLedger
from acq_isl.session.engine import WithoutEngine
from acq_isl.session.evidence import STORE
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.session.session import Session
from acq_isl.session.so_far import SoFar, read_so_far
from acq_isl.session.tools import SessionTools
from acq_isl.stack import Slice, ZStack
from acq_isl.storage.decision_log import read_intact
from acq_isl.storage.prediction_store import PredictionStore, find, load
from acq_isl.stream.client import EngineClient
from acq_isl.view.feed.previews import preview_of


def resumable(folder: Path, experiment: Experiment) -> SavedPlan:
    """The plan of a run that may be gone on with; ExperimentError or StorageError if not."""
    plan = SavedPlan.read(folder)
    before = Experiment.from_yaml(folder / "experiment.yaml")
    if before.overview != experiment.overview or before.models != experiment.models:
        raise ExperimentError(
            f"the experiment is not the one of the run in {folder}",
            wanted="the same overview and models; engine, choice, triggers and limits may differ",
            fix=f"take the run's own file: {folder / 'experiment.yaml'}",
        )
    with PredictionStore(folder / STORE, extend=True):  # StorageError while that run still goes on
        _set_damaged_aside(folder / "decisions.jsonl")
    return plan


def _set_damaged_aside(ledger: Path) -> None:
    """A ledger whose last line was cut off is kept as it is; another one goes on behind its whole lines.

    What they say was spent of light and done by triggers is still true.
    """
    if not ledger.exists():
        return
    lines, broken = read_intact(ledger)
    if broken is not None:
        number = len(list(ledger.parent.glob("decisions_damaged_*.jsonl"))) + 1
        aside = ledger.rename(ledger.with_name(f"decisions_damaged_{number}.jsonl"))
        if lines:
            whole = aside.read_bytes().split(b"\n")[: len(lines)]
            write_whole(ledger, b"\n".join(whole) + b"\n", durable=True)


def cycles_from_now(cycles: tuple[Cycle, ...], so_far: SoFar) -> tuple[Cycle, ...]:
    """The same time points, of which the first that is not complete starts now."""
    left = [cycle for cycle in cycles if any(request.key not in so_far.fields for request in cycle.requests)]
    start_s = left[0].start_s if left else cycles[-1].start_s
    return tuple(Cycle(each.time, max(each.start_s - start_s, 0.0), each.requests) for each in cycles)


class Resumption:
    """What an earlier run left, taken up by a session that is about to begin."""

    def __init__(self, folder: Path, experiment: Experiment, tools: SessionTools) -> None:
        self._folder, self._tools = folder, tools
        self.so_far = read_so_far(folder, experiment, tools.labels, tools.ask)
        self.plan = cycles_from_now(self.so_far.plan.cycles, self.so_far)

    @property
    def words(self) -> str:
        """What was there before, for people."""
        so_far = self.so_far
        imaged, predicted = so_far.fields.values(), [one for one in so_far.fields.values() if one.predictions]
        return (
            f"this run was cut off and gone on with: {len(imaged)} of {len(imaged) + so_far.left} fields "
            f"had been imaged, {len(predicted)} of them predicted"
        )

    def hand_over(self, session: Session, source: EngineClient | WithoutEngine) -> None:
        """Tell the session what is there, and the engine what it has not seen."""
        so_far = self.so_far
        fired = [so_far.fired[trigger.name] for trigger in so_far.experiment.triggers]
        session.take_up(so_far.fields, so_far.acquired, so_far.cache, fired, so_far.visits)
        session.light.take_up(so_far.decisions)
        session.trust.take_up(so_far.decisions)
        for request in so_far.cut_off:  # its light was not booked
            key, slices = request.key, so_far.measured.planes(request.key)
            place = LightLedger.entries_of(request)
            self._tools.ledger.dose(key.position, key.channel, request.exposure_ms, slices, place)
            session.light.book(request, slices)
        sent = []
        for key, field in so_far.fields.items():
            if len(field.answers) < len(field.models):
                try:
                    stack = so_far.measured.stack(field.request)
                except AcqIslError as error:
                    session.warnings.append(str(error))
                    continue
                self._tools.emit(FieldImaged(field.request))
                for z, pixels in enumerate(stack.pixels):
                    source.put(Slice(stack.info, z, pixels, time.time()))
                sent.append(key)
        so_far.book(source.accounts, sent)

    def show(self, handle: EventHandler) -> None:
        """Let viewers see what was imaged and predicted before."""
        so_far, path = self.so_far, self._folder / STORE
        for key, field in so_far.fields.items():
            try:
                handle(_middle(so_far.measured.stack(field.request)))
                for prediction in field.predictions:
                    whole = so_far.labels.rename(load(path, find(path, key, prediction.model)[-1]))
                    rules = [r for r in measurements(so_far.experiment) if set(r.labels) <= set(whole.labels)]
                    found = [so_far.cache.measure(whole, rule) for rule in rules]
                    handle(Predicted.of(whole, tuple(each for each in found if each is not None), 0.0))
            except AcqIslError:
                continue  # told when the session takes it up


def _middle(stack: ZStack) -> Seen:
    z = stack.info.planes // 2
    return preview_of(Slice(stack.info, z, stack.pixels[z], time.time()), predict=True)
