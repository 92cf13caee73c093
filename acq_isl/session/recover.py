"""Finish what a run that was killed left: predict what is missing, choose, write the report.

The measured data is only read. What happens here is written into a ledger of its own, ``recovery.jsonl``;
a second call finds nothing to do.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import assert_never

from acq_isl.errors import AcqIslError, ExperimentError, ModelError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.record import RunRecord
from acq_isl.report.report import write_report
from acq_isl.rules import Choice
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.session.evidence import LEDGERS, STORE, LazyLedger, vouch_stored
from acq_isl.session.fields import choose_fields
from acq_isl.session.predict_spool import Models, predict_spool, store_checked
from acq_isl.session.so_far import SoFar, duration_s, read_decisions, read_so_far
from acq_isl.session.summary import Stored, run_files, summarise, versions
from acq_isl.stack import Outcome, Prediction, Refusal, StackKey, Unpredicted, ZStack
from acq_isl.storage.prediction_store import PredictionStore, find, load
from acq_isl.stream.accounts import SliceAccounts
from acq_isl.stream.model_registry import named
from acq_isl.view.feed.address import FILE as LIVE

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a call of `recover` did, in numbers of stacks."""

    predicted: int
    refused: int
    left: int  # measured, and still without a prediction or a refusal
    not_imaged: int  # of the plan
    chosen: int  # fields, in this call
    report: Path | None  # None where nothing was done


def recover(
    folder: Path,
    models: Models,
    *,
    choose: bool = False,
    keep: bool = False,
    tell: Tell = lambda text: None,
) -> Recovered:
    """Predict what is measured and not predicted, rank the fields anew if ``choose``, and write the report.

    ``keep`` leaves the stacks of the spool there, ``tell`` gets a sentence for each. StorageError: the run
    goes on, did not keep its plan, or its predictions cannot be written; ModelError: one of its models is not
    among ``models``.
    """
    experiment = Experiment.from_yaml(folder / "experiment.yaml")
    labels = run_labels(experiment, models)
    from_spool = 0
    if (folder / "spool").is_dir():
        for stack in predict_spool(folder, models, keep=keep):
            from_spool += stack.done
            tell(f"{stack.path.name}: {'; '.join(stack.results)}")
    with ExitStack() as opened:
        book = opened.enter_context(LazyLedger(folder / LEDGERS[1]))
        colors, note = labels.store_colors, vouch_stored(book.write)
        store = opened.enter_context(PredictionStore(folder / STORE, colors, extend=True, on_stored=note))
        (folder / LIVE).unlink(missing_ok=True)  # a killed run could not; the store's lock says it is over
        so_far = read_so_far(folder, experiment, labels)
        work = _Recovery(folder, models, store, so_far, book, tell)
        work.note_spool(from_spool)
        work.predict()
        chosen = work.choose() if choose else 0
    counts = work.counts
    reported = (folder / "report.html").exists() and not book.opened
    report = None if reported else _report(folder, so_far)
    left = sum(field.status not in ("predicted", "refused") for field in so_far.fields.values())
    return Recovered(counts["predicted"], counts["refused"], left, so_far.left, chosen, report)


def run_labels(experiment: Experiment, models: Models) -> Labels:
    """What the models of a run predict; ModelError if one of them is not there."""
    there = models.manifests()
    if not experiment.models:
        return Labels([RunModel("", *there[name]) for name in list(there)[:1]])
    found = []
    for number, entry in enumerate(experiment.models):
        name = named(entry)[0] or entry
        if name not in there and len(there) == len(experiment.models):
            name = list(there)[number]  # a file's model is asked for by its own name
        if name not in there:
            raise ModelError(
                f"the run asked for a model {name!r}", got=", ".join(there), fix="name it: --model NAME=FILE"
            )
        found.append(RunModel(name, *there[name]))
    return Labels(found)


class _Recovery:
    """One call of `recover`, with the store open."""

    def __init__(
        self,
        folder: Path,
        models: Models,
        store: PredictionStore,
        so_far: SoFar,
        book: LazyLedger,
        tell: Tell,
    ) -> None:
        self._folder, self._models, self._store = folder, models, store
        self._so_far, self._ledger, self._tell = so_far, book, tell
        self.counts = {"predicted": 0, "refused": 0}
        self._refused = {
            (tuple(line["key"].values()), line["model"], line["model_sha256"]): line
            for line in so_far.decisions
            if line["kind"] == "refused"
        }

    def note_spool(self, stacks: int) -> None:
        """Stacks of the spool that were predicted just now are something done, too."""
        if stacks:
            self._ledger.write("recovered", spooled_stacks=stacks)
            self.counts["predicted"] += stacks

    def predict(self) -> None:
        for field in self._so_far.fields.values():
            missing = tuple(model for model in field.models if model not in field.answers)
            if not missing:
                continue
            try:
                stack = self._so_far.measured.stack(field.request)
            except AcqIslError as error:
                self._so_far.warnings.append(str(error))
                self._tell(f"{field.request.key}: not predicted: {error}")
                continue
            asked = tuple(model for model in missing if not self._was_refused(stack, model))
            for outcome in self._models.predict(stack, asked) if asked else ():
                self._take(outcome)

    def choose(self) -> int:
        """Rank the fields of each time point; what comes out as it stands in the ledger is left alone."""
        so_far, rule = self._so_far, self._so_far.experiment.choose
        if rule is None:
            raise ExperimentError("the run's experiment chooses nothing", fix="leave out --choose")
        chosen = 0
        for cycle in so_far.plan.cycles:
            known = [request.key for request in cycle.requests if request.key in so_far.fields]
            fields = [so_far.fields[key] for key in known]
            choices = choose_fields(rule, so_far.labels, fields, so_far.cache) if known else ()
            if all(_same_place(so_far.fields[choice.key].choice, choice) for choice in choices):
                continue
            self._tell_unranked(len(cycle.requests) - sum(one.rank is not None for one in choices), cycle)
            for choice in choices:
                so_far.fields[choice.key].choice = choice
                self._ledger.write("choice", **asdict(choice))
                chosen += choice.chosen
                if choice.chosen:
                    self._tell(f"{choice.key}: {choice.reason}")
        return chosen

    def _tell_unranked(self, missing: int, cycle: Cycle) -> None:
        """Who asks for a choice here gets one, whatever share of fields is required, and is told."""
        if missing:
            text = (
                f"{missing} of {len(cycle.requests)} fields were not ranked; to image the others and choose "
                f"among all: acq-isl run EXPERIMENT --resume {self._folder}"
            )
            self._so_far.warnings.append(text)
            self._tell(text)

    def _was_refused(self, stack: ZStack, model: str) -> bool:
        """Whether a call before this one had it refused; what then was said is said again."""
        sha256 = self._sha256(model)
        line = self._refused.get((tuple(asdict(stack.info.key).values()), model, sha256))
        if line is not None:
            self._so_far.take(Refusal(stack.info, line["reason"], line["fix"], model))
        return line is not None

    def _take(self, outcome: Outcome) -> None:
        self._so_far.take(outcome)
        key, model = outcome.info.key, outcome.model
        match outcome:
            case Prediction():
                name = store_checked(self._store, self._folder / STORE, outcome)
                self._ledger.write(
                    "recovered", key=asdict(key), model=model, name=name, model_sha256=outcome.model_sha256
                )
                self.counts["predicted"] += 1
                self._tell(f"{key}: predicted, {name}")
            case Refusal(reason=reason, fix=fix):
                about = {"key": asdict(key), "model": model, "model_sha256": self._sha256(model)}
                self._ledger.write("refused", **about, reason=reason, fix=fix)
                self.counts["refused"] += 1
                self._tell(f"{key}: refused: {reason}; to fix: {fix}")
            case Unpredicted(reason=reason):
                self._tell(f"{key}: not predicted: {reason}")
            case _:
                assert_never(outcome)

    def _sha256(self, model: str) -> str:
        there = self._models.manifests()
        return there[model or next(iter(there))][1] if there else ""


def _same_place(before: Choice | None, now: Choice) -> bool:
    return before is not None and (before.rank, before.chosen) == (now.rank, now.chosen)


def _report(folder: Path, so_far: SoFar) -> Path:
    """Write the report of all that is there; an earlier one is kept beside it."""
    path = folder / "report.html"
    if path.exists():
        shutil.copy2(path, path.with_name("report_before_recovery.html"))
    when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    told = f"this report was written by 'acq-isl recover' at {when}; what only the run itself knew is missing"
    if so_far.left:
        told += f"; {so_far.left} fields were not imaged: acq-isl run EXPERIMENT --resume {folder}"
    write_report(path, make_record(folder, so_far, (told,)))
    return path


def make_record(folder: Path, so_far: SoFar, warnings: tuple[str, ...]) -> RunRecord:
    """All that is known of a run from its folder."""
    experiment, labels = so_far.experiment, so_far.labels

    def stored(key: StackKey, model: str) -> Prediction:
        return labels.rename(load(folder / STORE, find(folder / STORE, key, model)[-1]))

    decisions, problems = read_decisions(folder)
    record = RunRecord(
        name=experiment.name,
        started=so_far.plan.started,
        duration_s=duration_s(so_far.decisions),
        scope=so_far.plan.scope,
        model=labels.titles,
        model_colors=labels.colors,
        counts=so_far.book(SliceAccounts()).counts,
        versions=versions(),
        files=run_files(folder),
        warnings=(*warnings, *problems),
        experiment_yaml=experiment.to_yaml(),
        label_models=labels.by_model,
    )
    record = summarise(experiment, so_far, Stored(so_far.measured.images, stored), record)
    return replace(record, decisions=decisions)
