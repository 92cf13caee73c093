"""Check a run: its ledger, what that vouches for, and every decision, made again from the predictions."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acq_isl.engines import describe
from acq_isl.errors import AcqIslError, StorageError
from acq_isl.rules import Choice, Measured
from acq_isl.rules.deciding import Verdict
from acq_isl.rules.trusted import SpotJudge, is_drawn, propose, score_of
from acq_isl.session.evidence import LEDGERS, STORE, TABLES, file_hash
from acq_isl.session.findings import Finding, State
from acq_isl.session.predict_spool import Models
from acq_isl.session.rerun import AsRun, Line, Logged, Rerun, StoredOutcomes, key_of, number, planned_requests
from acq_isl.session.trust import CHECK, GUARD, judge_of
from acq_isl.session.verify_pixels import check_pixels
from acq_isl.stack import StackKey, StackRequest
from acq_isl.storage.prediction_store import digest, stored
from acq_isl.stream.model_registry import named

_SEAL = re.compile(r"Seal of the decisions: <code>([0-9a-f]{64})</code>")
_OLD = "the ledger is of an older version, which did not vouch for"


def verify_run(
    folder: Path, files: Sequence[str] = (), models: Models | None = None, tell: Callable[[str], object] = str
) -> tuple[Finding, ...]:
    """Check the run in a folder; nothing in it is changed.

    ``files`` are its model files, if they are not where the experiment says. With ``models`` every stack is
    predicted again from what was measured. ``tell`` hears how far it came. StorageError if there is no run.
    """
    if not any((folder / name).is_file() for name in LEDGERS):
        raise StorageError(f"there is no run in {folder}", wanted=f"{LEDGERS[0]} in it", fix="check the path")
    logged = Logged.read(folder)
    requests = planned_requests(folder)
    tell("ledger and files")
    found = [*_check_ledgers(folder, logged), *_check_files(folder, logged)]
    found += _check_models(logged, files)
    tell("stored predictions")
    found += _check_stored(folder, logged)
    tell("decisions")
    found += _Again(folder, logged, requests).check()
    if models is None:
        found.append(
            Finding("measured pixels", "not verified", "no hash vouches for them; --pixels predicts again")
        )
    else:
        tell("predicting again")
        found += check_pixels(folder, logged, requests, models)
    return tuple(found)


def _check_ledgers(folder: Path, logged: Logged) -> list[Finding]:
    found = [Finding("decision log", "differs", str(error)) for error in logged.broken]
    for name, lines in zip(LEDGERS, (logged.lines, logged.recovered), strict=True):
        if not lines:
            continue
        text = f"{name}: {len(lines)} lines, each sealed by the one before"
        if lines[-1]["kind"] != "closed" and not logged.broken:
            why = "the run ended hard, or lines were cut off its end"
            found.append(Finding("decision log", "not verified", f"{name} was not closed in order: {why}"))
        found.append(Finding("decision log", "holds", text))
    found += [
        Finding("decision log", "not verified", f"{path.name} was set aside, as its last line was cut off")
        for path in sorted(folder.glob("decisions_damaged_*.jsonl"))
    ]
    return found + _check_seal(folder, logged)


def _check_seal(folder: Path, logged: Logged) -> list[Finding]:
    """The report names the seal of the last line: a ledger written anew, or cut off, has none like it."""
    report = folder / "report.html"
    if not report.exists() or logged.broken:
        return []
    noted = _SEAL.search(report.read_text(encoding="utf-8", errors="replace"))
    if noted is None:
        return [Finding("report", "not verified", "it names no seal of the decisions")]
    if noted[1] in {line["sha256"] for line in (*logged.lines, *logged.recovered)}:
        return [
            Finding("report", "holds", f"its seal of the decisions, {noted[1][:12]}, is one of the ledger")
        ]
    text = f"its seal, {noted[1][:12]}, is of no line: lines were cut off, or the ledger was written anew"
    return [Finding("report", "differs", text)]


def _check_files(folder: Path, logged: Logged) -> list[Finding]:
    hashes = {name: sha256 for line in logged.of("run") for name, sha256 in line["files"].items()}
    if not hashes:
        return [Finding("experiment file", "not verified", f"{_OLD} experiment, plan, model and predictions")]
    found = []
    for name, sha256 in hashes.items():
        there = file_hash(folder / name)
        text = (
            "is as it was run" if there == sha256 else "is not the one that was run" if there else "is gone"
        )
        found.append(Finding("experiment file", "holds" if there == sha256 else "differs", f"{name} {text}"))
    return found + _check_tables(folder, logged)


def _check_tables(folder: Path, logged: Logged) -> list[Finding]:
    """Tables beside the ledger; one that a later process went on with is held against what it was before."""
    vouched = tuple(logged.of("files"))
    if not vouched:
        there = [name for name in TABLES if (folder / name).exists()]
        text = f"nobody vouches for {' and '.join(there)}: the run ended hard, or is of an older version"
        return [Finding("table", "not verified", text)] if there else []
    went_on = any(line["kind"] not in ("files", "closed") for line in logged.lines[int(vouched[-1]["n"]) :])
    last = {name: about for line in vouched for name, about in line["files"].items()}
    found = [_check_table(folder / name, about, went_on) for name, about in last.items()]
    new = [name for name in TABLES if (folder / name).exists() and name not in last]
    return found + [Finding("table", "not verified", f"nobody vouches for {name}") for name in new]


def _check_table(path: Path, about: Mapping[str, Any], went_on: bool) -> Finding:
    try:
        content = path.read_bytes()
    except OSError:
        return Finding("table", "differs", f"{path.name} is gone")
    size = int(about["bytes"])
    if hashlib.sha256(content[:size] if went_on else content).hexdigest() != about["sha256"]:
        return Finding("table", "differs", f"{path.name} is not as the run left it")
    if len(content) > size:
        text = f"{path.name}: {len(content) - size} bytes were added by a process that ended hard"
        return Finding("table", "not verified", text)
    return Finding("table", "holds", f"{path.name} is as the run left it")


def _check_models(logged: Logged, files: Sequence[str]) -> list[Finding]:
    found, known = list[Finding](), {""}
    for line in logged.of("run"):
        asked = line["experiment"]
        entries = files or asked.get("models") or [asked.get("model", "")]
        served = not files and asked.get("engine", {}).get("kind") != "local"
        known |= {model["model_sha256"] for model in line["models"]}
        for model, entry in zip(line["models"], entries, strict=False):
            found.append(_check_model(model, "" if served else str(entry)))
    later = {
        str(line["model_sha256"]) for line in logged.of("outcome") if line["state"] == "predicted"
    } - known
    for sha256 in sorted(later):
        text = f"{sha256[:12]} predicted, which nobody knew of at the start, or which was swapped in"
        found.append(Finding("model file", "not verified", text))
    return list(dict.fromkeys(found))


def _check_model(model: Mapping[str, Any], entry: str) -> Finding:
    """Whether a file is the model of a run; ``entry`` is empty if a server had it."""
    title = model["title"] or model["asked_as"] or "the model"
    if not model["model_sha256"]:
        return Finding("model file", "not verified", f"{title}: nobody knew at the start which file it was")
    if not entry:
        return Finding("model file", "not verified", f"{title} was served; name its file: --model FILE")
    try:
        there = describe(named(entry)[1]).sha256
    except AcqIslError as error:
        return Finding("model file", "not verified", f"{title}: {error.what}; name its file: --model FILE")
    if there != model["model_sha256"]:
        return Finding("model file", "differs", f"{title}: {entry} is another file ({there[:12]})")
    return Finding("model file", "holds", f"{title}: {entry} is the file that predicted")


def _check_stored(folder: Path, logged: Logged) -> list[Finding]:
    path, bad, vouched = folder / STORE, list[Finding](), dict[str, Line]()
    for line in logged.of("stored"):
        vouched[line["name"]] = line
    for name, line in vouched.items():
        try:
            intact = digest(path, name) == line["content_sha256"] and (path / name).is_dir()
            text = "is not what was stored" if (path / name).is_dir() else "is gone"
        except AcqIslError as error:
            intact, text = False, error.what
        if not intact:
            bad.append(Finding("predictions", "differs", f"{key_of(line)} ({name}) {text}"))
    if vouched:
        whole = f"{len(vouched) - len(bad)} of {len(vouched)} stored predictions are as they were written"
        bad.append(Finding("predictions", "holds" if not bad else "differs", whole))
    others = [name for name in (stored(path) if path.exists() else ()) if name not in vouched]
    if others and vouched:
        bad.append(Finding("predictions", "not verified", f"nobody vouches for {', '.join(others[:5])}"))
    return bad


class _Again:
    """Makes every decision of a run once more, from its stored predictions."""

    def __init__(self, folder: Path, logged: Logged, requests: Mapping[StackKey, StackRequest]) -> None:
        self._logged, self._requests = logged, requests
        self._outcomes = StoredOutcomes(folder, logged, requests)
        self._rerun: Rerun | None = None
        self._found: list[Finding] = []
        self._same: Counter[str] = Counter()
        self._judge = SpotJudge(None, None, 1, 1)
        self._verdicts = {
            (line["outcome"], line["trigger"], key_of(line)): line
            for line in logged.of("decision", "proposed", "late")
            if "outcome" in line
        }

    def check(self) -> list[Finding]:
        choices: dict[StackKey, Line] = {}
        recovering = len(self._logged.lines)
        for place, line in enumerate((*self._logged.lines, *self._logged.recovered)):
            if line["kind"] == "choice":
                choices[key_of(line)] = line
                continue
            if choices and line["kind"] != "stored":  # of the disk's own thread
                self._check_choices(choices)
                choices = {}
            if line["kind"] != "stored" or place >= recovering:  # those of the run stand before their outcome
                self._go_on(line)
        if choices:
            self._check_choices(choices)
        return self._found + self._sum_up()

    def _go_on(self, line: Line) -> None:
        """Do what a line says was done."""
        match line["kind"]:
            case "run":
                self._begin(line)
            case "time_point" if self._rerun is not None:
                self._rerun.expect([key_of({"key": key}) for key in line["fields"]])
            case "time_point_over" if self._rerun is not None:
                for verdict in self._rerun.close(line["time_point"]):
                    self._compare_verdict(line["n"], verdict)
            case "outcome":
                self._check_outcome(line)
            case "stored":
                self._take_stored(line)
            case "spot_check" | "guard":
                self._check_draw(line)
            case "trust":
                pairs = {"why": (line["why"], self._judge.propose_only.get(line["label"], "not to be"))}
                self._compare("trust", f"{line['label']} only proposed", pairs)

    def _sum_up(self) -> list[Finding]:
        if not any(self._logged.of("run")):
            decided = Counter(line["kind"] for line in self._logged.of("decision", "choice"))
            words = " and ".join(f"{n} lines '{kind}'" for kind, n in decided.items()) or "no decisions"
            return [Finding("decisions", "not verified", f"{words}: {_OLD} what they were made from")]
        made = ", ".join(f"{count} {what}" for what, count in self._same.items()) or "nothing was decided"
        return [Finding("decisions", "holds", f"made again from stored predictions: {made}")]

    def _begin(self, line: Line) -> None:
        """A run begins, or was gone on with: then it knows what is stored, and how often triggers acted."""
        try:
            self._rerun = Rerun(AsRun.of(line), self._requests, self._logged)
        except (AcqIslError, ValueError) as error:
            self._rerun = None
            self._note(
                "decisions", "not verified", f"this version does not understand the experiment: {error}"
            )
            return
        before = self._logged.lines[: line["n"]]
        self._judge = judge_of(self._rerun.experiment.spot_checks, before)
        acted = (each for each in before if each["kind"] == "decision" and each["what"] != "nothing")
        self._rerun.take_fired(Counter(str(each["rule"]) for each in acted))
        for each in before:
            if each["kind"] == "stored":
                self._take_stored(each)

    def _check_draw(self, line: Line) -> None:
        """Whether a field that was left to chance was drawn, and what its score means for its label."""
        if self._rerun is None:
            return
        experiment, key = self._rerun.experiment, key_of(line)
        what = GUARD if line["kind"] == "guard" else CHECK
        settings = experiment.bias_guard if what == GUARD else experiment.spot_checks
        drawn = settings is not None and is_drawn(what, settings.seed, settings.share, key)
        self._compare("draws", f"{key}: {what}", {"drawn": (True, drawn)})
        if line["kind"] == "spot_check":
            self._judge.add(score_of(line))

    def _take_stored(self, line: Line) -> None:
        if self._rerun is not None:
            try:
                self._rerun.take(self._outcomes.load(line["name"]))
            except AcqIslError as error:
                self._note("decisions", "not verified", f"{key_of(line)}: {error.what}")

    def _check_outcome(self, line: Line) -> None:
        key, model = key_of(line), str(line["model"])
        if self._rerun is None:
            return
        try:
            measured = self._rerun.take(self._outcomes.get(line))
        except AcqIslError as error:
            self._note("decisions", "not verified", f"{key}: {error.what}")
            return
        logged = line.get("measured", ())
        for told, again in zip(logged, measured, strict=False):
            self._compare_measured(key, told, again)
        if len(logged) != len(measured):
            self._note(
                "measurements", "differs", f"{key}: {len(measured)} measurements, in the ledger {len(logged)}"
            )
        for verdict in self._rerun.decide(key, model, number(line["age_s"]), self._judge.propose_only):
            self._compare_verdict(line["n"], verdict)

    def _compare_measured(self, key: StackKey, told: Line, again: Measured) -> None:
        if told["name"] == again.name and _same(number(told["value"]), again.value):
            self._same["measurements"] += 1
            return
        text = f"{key}: {again.name} is {again.value:g}, in the ledger {told['name']} is {told['value']}"
        self._note("measurements", "differs", text)

    def _compare_verdict(self, outcome: int, verdict: Verdict) -> None:
        decision, told = verdict.decision, self._verdicts.get((outcome, verdict.index, verdict.decision.key))
        if told is None:
            # The run ended while the action was carried out: a line that was taken away breaks the chain.
            text = (
                f"{decision.key}: '{decision.rule}' decides to {decision.what}, and the ledger does not say"
            )
            self._note("decisions", "not verified", text)
            return
        kind = verdict.kind if verdict.kind in ("proposed", "late") else "decision"
        pairs = {
            "what": (told["what"], decision.what),
            "kind": (told["kind"], kind),
            "value": (number(told["value"]), decision.value),
            "threshold": (number(told["threshold"]), decision.threshold),
        }
        self._compare("decisions", f"{decision.key}: '{decision.rule}'", pairs)

    def _check_choices(self, lines: Mapping[StackKey, Line]) -> None:
        if self._rerun is None:
            return
        order = {key: place for place, key in enumerate(self._requests)}
        for time in sorted({key.time for key in lines}):
            keys = sorted((key for key in lines if key.time == time), key=lambda key: order.get(key, 0))
            choices = self._rerun.choose(keys)
            if why := self._rerun.why_propose(self._judge.propose_only):
                choices = tuple(propose(choice, why) for choice in choices)
            for choice in choices:
                self._compare_choice(choice, lines[choice.key])

    def _compare_choice(self, choice: Choice, told: Line) -> None:
        value = choice.measured.value if choice.measured else math.nan
        said = number(told["measured"]["value"]) if told["measured"] else math.nan
        pairs = {
            "rank": (told["rank"], choice.rank),
            "chosen": (told["chosen"], choice.chosen),
            "value": (said, value),
        }
        self._compare("choices", f"{choice.key}", pairs)

    def _compare(self, part: str, what: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        off = [
            f"{name} {now}, in the ledger {told}"
            for name, (told, now) in pairs.items()
            if not _same(told, now)
        ]
        if off:
            self._note(part, "differs", f"{what}: made again, {'; '.join(off)}")
        else:
            self._same[part] += 1

    def _note(self, part: str, state: State, text: str) -> None:
        self._found.append(Finding(part, state, text))


def _same(told: Any, now: Any) -> bool:
    if isinstance(told, float) and isinstance(now, float):
        return (math.isnan(told) and math.isnan(now)) or math.isclose(told, now, rel_tol=1e-6, abs_tol=1e-9)
    return bool(told == now)
