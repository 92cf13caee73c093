"""What a run writes into its ledger, so that `acq-isl verify` can do everything again.

* ``run``: the experiment with all defaults, models with manifests, software, hashes of files
* ``stored``: a prediction that is complete on disk, with the hash of its files
* ``schedule``: which fields of a time point are imaged, and why
* ``time_point``, ``time_point_over``: the fields that triggers on wells and runs wait for, until it is over
* ``outcome``: what triggers are about to look at, with everything that was measured on it
* ``decision``, ``proposed``, ``late``: what a trigger made of that outcome
* ``files``: hashes of the tables that the run has left beside its ledger, once they are complete
* ``choice``: where a field stands; ``spot_check``, ``trust``: see `acq_isl.session.trust`
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, assert_never

import yaml

from acq_isl.errors import StorageError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.rules import Measured
from acq_isl.rules.deciding import Verdict
from acq_isl.rules.label_names import Labels
from acq_isl.rules.schedules import Turn
from acq_isl.session.saved_plan import FILE as PLAN
from acq_isl.stack import Outcome, Prediction, Refusal, StackKey, Unpredicted
from acq_isl.storage.decision_log import Ledger
from acq_isl.storage.prediction_store import OnStored

FORMAT = 1
STORE = "predictions.ome.zarr"
LEDGERS = ("decisions.jsonl", "recovery.jsonl")
TABLES = ("measurements.csv", "dose.csv", "pairs.yaml", "truth.json")
_log = logging.getLogger(__name__)


def file_hash(path: Path) -> str:
    """SHA-256 of a file; empty if it is not there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def note_run(
    ledger: Ledger, folder: Path, experiment: Experiment, labels: Labels, software: dict[str, str]
) -> None:
    """Vouch for what the run is about to do, once it is known who predicts."""
    file = sorted(folder.glob("experiment*.yaml"), key=_number)[-1].name
    models = [
        {
            "asked_as": model.asked_as,
            "title": model.title,
            "model_sha256": model.sha256,
            "manifest": model.manifest.model_dump(mode="json") if model.manifest else None,
        }
        for model in labels.run_models
    ]
    ledger.write(
        "run",
        format=FORMAT,
        files={name: file_hash(folder / name) for name in (file, PLAN)},
        experiment=yaml.safe_load(experiment.to_yaml()),
        models=models,
        software=software,
    )


def _number(path: Path) -> int:
    """``experiment.yaml`` is 1, ``experiment_2.yaml`` is 2."""
    _, _, number = path.stem.partition("_")
    return int(number) if number.isdigit() else 1


class LazyLedger:
    """A ledger that is made with the first line: what does nothing leaves no file."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._ledger: Ledger | None = None

    def __enter__(self) -> LazyLedger:
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def opened(self) -> bool:
        """Whether anything was written."""
        return self._ledger is not None

    def write(self, kind: str, **entries: Any) -> dict[str, Any]:
        """As `Ledger.write`."""
        if self._ledger is None:
            self._ledger = self._stack.enter_context(Ledger(self._path))
        return self._ledger.write(kind, **entries)


def vouch_files(folder: Path) -> None:
    """Write the hashes of the tables of a run that is over; told in the log if that is not possible."""
    there = {name: folder / name for name in TABLES if (folder / name).is_file()}
    try:
        found = {
            name: {"sha256": file_hash(path), "bytes": path.stat().st_size} for name, path in there.items()
        }
        with Ledger(folder / LEDGERS[0]) as ledger:
            ledger.write("files", files=found)
    except (StorageError, OSError) as error:
        _log.warning("nobody vouches for %s: %s", ", ".join(there), error)


def vouch_stored(write: Callable[..., object]) -> OnStored:
    """Write the hash of every prediction that is complete on disk."""

    def note(prediction: Prediction, name: str, content: str) -> None:
        about = {"key": asdict(prediction.info.key), "model": prediction.model, "name": name}
        try:
            write("stored", **about, content_sha256=content, model_sha256=prediction.model_sha256)
        except StorageError as error:  # the session will meet it, too
            _log.warning("nobody vouches for %s: %s", name, error)

    return note


def note_schedule(ledger: Ledger, cycle: Cycle, said: Sequence[Turn]) -> None:
    """Write down which fields the schedule wants imaged at a time point, and why."""
    ledger.write("schedule", time_point=cycle.time, fields=[asdict(each) for each in said])


def note_fields(ledger: Ledger, cycle: Cycle) -> list[StackKey]:
    """Write down the fields of a time point, which triggers on wells and runs wait for; their keys."""
    keys = [request.key for request in cycle.requests]
    ledger.write("time_point", time_point=cycle.time, fields=[asdict(key) for key in keys])
    return keys


def note_outcome(
    ledger: Ledger, outcome: Outcome, measured: Sequence[Measured], age_s: float, imaged_s: float
) -> int:
    """Write down what triggers are about to look at; its line. ``imaged_s`` is since the run began."""
    about: dict[str, Any] = {"key": asdict(outcome.info.key), "model": outcome.model, "age_s": age_s}
    about["imaged_s"] = imaged_s
    match outcome:
        case Prediction():
            about |= {
                "state": "predicted",
                "model_sha256": outcome.model_sha256,
                "engine": outcome.engine,
                "warnings": outcome.warnings,
                "distances": [asdict(distance) for distance in outcome.distances],
                "measured": [asdict(each) for each in measured],
                "latency_ms": asdict(outcome.times),
            }
        case Refusal():
            about |= {"state": "refused", "reason": outcome.reason, "fix": outcome.fix}
        case Unpredicted():
            about |= {"state": "not predicted", "reason": outcome.reason, "where": outcome.where}
        case _:
            assert_never(outcome)
    return int(ledger.note("outcome", **about)["n"])


def note_verdict(ledger: Ledger, verdict: Verdict, outcome: int, done: str, after_s: float) -> None:
    """Write down what a trigger made of an outcome (number of its line), and what became of it."""
    decision = verdict.decision
    action = decision.action.model_dump(mode="json") if decision.action is not None else None
    kind = verdict.kind if verdict.kind in ("proposed", "late") else "decision"
    line = asdict(replace(decision, action=None)) | {"action": action}
    ledger.write(kind, **line, trigger=verdict.index, outcome=outcome, done=done, after_s=after_s)
