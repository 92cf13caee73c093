"""Whether the numbers and names of an experiment can mean what they say, before anything moves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

from acq_isl.compatibility import Refuse, Resample, Sort, Use, check
from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.rules.label_names import Labels
from acq_isl.rules.lint import Lint
from acq_isl.session.checks import Camera, announce
from acq_isl.session.explain import lint
from acq_isl.stack import StackRequest

__all__ = ["Camera", "check_fit", "find_doubts", "refuse_errors"]


def find_doubts(experiment: Experiment, plan: Sequence[Cycle], camera: Camera) -> tuple[str, ...]:
    """What is odd in an experiment, for people; ExperimentError for what can never come true."""
    return refuse_errors(lint(experiment, plan, camera=camera))


def refuse_errors(remarks: Iterable[Lint]) -> tuple[str, ...]:
    """Remarks for people; ExperimentError for the first that is an error."""
    doubts: dict[str, None] = {}
    for remark in remarks:
        if remark.level == "error":
            raise ExperimentError(remark.said, fix=remark.fix or None)
        doubts[str(remark)] = None
    return tuple(doubts)


def check_fit(labels: Labels, plan: Iterable[Cycle], camera: Camera) -> tuple[str, ...]:
    """What models would remark on the planned stacks; ExperimentError for one that all would refuse."""
    asked: dict[object, StackRequest] = {}  # fields of a run are many, their stacks alike
    for request in (request for cycle in plan for request in cycle.requests if request.predict):
        heights = tuple(round(z - request.z_um[0], 4) for z in request.z_um)
        asked.setdefault((heights, request.modality, request.polarity), request)
    doubts: dict[str, None] = {}
    for request in asked.values():
        refused: dict[str, Refuse] = {}
        for name, manifest in labels.manifests.items():
            verdict = check(manifest, announce(request, camera))
            match verdict:
                case Refuse(reason=reason):
                    refused[f"{name} would refuse {request.key}: {reason}"] = verdict
                case Resample(warnings=notes) | Use(notes=notes) | Sort(notes=notes):
                    doubts |= dict.fromkeys(f"{name}: {note}" for note in notes)
                case _:
                    assert_never(verdict)
        if refused and len(refused) == len(labels.manifests):
            fixes = " or ".join(dict.fromkeys(refusal.fix for refusal in refused.values()))
            fix = f"{fixes}; or engine: {{kind: none}} to acquire without predictions"
            raise ExperimentError("; ".join(refused), fix=fix)
        doubts |= dict.fromkeys(refused)
    return tuple(doubts)
