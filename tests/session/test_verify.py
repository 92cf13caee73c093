"""A run verifies as it was made; whatever is changed in it afterwards is found, and said in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from acq_isl.errors import StorageError
from acq_isl.session.evidence import STORE, TABLES, vouch_files
from acq_isl.session.findings import Finding
from acq_isl.session.verify import verify_run
from acq_isl.session.verify_pixels import weigh
from acq_isl.stack import Refusal, StackKey, StackRequest
from acq_isl.storage.decision_log import Ledger, read
from doubles.run_folder import Scope, SmallRun, index_of, predict


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = SmallRun(tmp_path_factory.mktemp("runs") / "run")
    run.run()
    return run.folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def differing(findings: tuple[Finding, ...]) -> str:
    return "; ".join(f"{each.part}: {each.text}" for each in findings if each.state == "differs")


def test_a_run_verifies(run: Path) -> None:
    findings = verify_run(run)
    assert differing(findings) == ""
    words = " ".join(each.text for each in findings if each.state == "holds")
    assert "6 of 6 stored predictions" in words and "6 decisions, 6 choices" in words
    assert "is the file that predicted" in words


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def chunk(run: Path) -> Path:
    files = sorted(path for path in (run / STORE / "A/1/p00001t0Phase/0").rglob("*") if path.is_file())
    return next(path for path in files if path.name != "zarr.json")


PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of a chunk": (lambda run: flip(chunk(run), 30), "p00_001 t0 Phase"),
    "provenance": (lambda run: flip(run / STORE / "A/1/p00003t0Phase/zarr.json", 40), "p00_003 t0 Phase"),
    "a prediction is gone": (lambda run: shutil.rmtree(run / STORE / "A/1/p00002t0Phase"), "is gone"),
    "the experiment": (lambda run: flip(run / "experiment.yaml", 8), "experiment.yaml is not the one"),
    "the plan": (lambda run: flip(run / "plan.json", -3), "plan.json is not the one"),
}  # fmt: skip


@pytest.mark.parametrize("plant, told", PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_change_is_found(run: Path, plant: Callable[[Path], None], told: str) -> None:
    plant(run)
    assert told in differing(verify_run(run))


def test_every_byte_of_the_ledger_counts(run: Path) -> None:
    path = run / "decisions.jsonl"
    whole = path.read_bytes()
    blanks = [place for place in range(len(whole)) if whole[place : place + 1] in b" \n"]
    for place in (*range(0, len(whole), 2999), *blanks[:2], *blanks[-3:]):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Exception, match="ledger"):
            read(path)
    path.write_bytes(whole[:-100])
    assert "decision log" in differing(verify_run(run))


def forge(run: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Write the ledger anew, every seal recomputed, as somebody who knows the format would."""
    path, lines = run / "decisions.jsonl", read(run / "decisions.jsonl")
    path.unlink()
    with Ledger(path) as ledger:
        for line in lines[:-1]:
            entries = {k: v for k, v in line.items() if k not in ("n", "time", "previous", "sha256", "kind")}
            told = {**entries, "kind": line["kind"]}
            change(told)
            ledger.write(str(told.pop("kind")), **told)


def deny(line: dict[str, object]) -> None:
    if line["kind"] == "decision" and line["what"] != "nothing":
        line["what"] = "nothing"


def exaggerate(line: dict[str, object]) -> None:
    if line["kind"] == "outcome":
        line["measured"][0]["value"] += 0.01  # type: ignore[index]


def promote(line: dict[str, object]) -> None:
    if line["kind"] == "choice" and line["rank"] == 3:
        line["chosen"] = True


FORGED = {
    "an action denied": (deny, "'bright': made again, what image this field"),
    "a measurement": (exaggerate, "mean intensity"),
    "a choice": (promote, "chosen False, in the ledger True"),
}


@pytest.mark.parametrize("change, told", FORGED.values(), ids=FORGED.keys())
def test_a_decision_that_was_forged_with_all_seals_does_not_come_out_again(
    run: Path, change: Callable[[dict[str, object]], None], told: str
) -> None:
    forge(run, change)
    assert told in differing(verify_run(run))


def test_a_report_that_names_another_seal_gives_a_ledger_written_anew_away(run: Path) -> None:
    seal = read(run / "decisions.jsonl")[-1]["sha256"]
    (run / "report.html").write_text(f"<p>Seal of the decisions: <code>{seal}</code></p>")
    assert differing(verify_run(run)) == ""
    forge(run, lambda line: None)
    assert "written anew" in differing(verify_run(run))


def test_a_model_file_that_is_not_the_one_is_told(run: Path, tmp_path: Path) -> None:
    from doubles import tiny_model as tiny

    other = tiny.write(tmp_path)
    assert "is another file" in differing(verify_run(run, (str(other),)))
    missing = verify_run(run, ("nothing.onnx",))
    assert differing(missing) == ""
    assert any(each.part == "model file" and each.state == "not verified" for each in missing)


def test_refused_stacks_are_decided_again_too(tmp_path: Path) -> None:
    def answer(request: StackRequest) -> Refusal | object:
        made = predict(request)
        return Refusal(made.info, "too dark", "more light") if index_of(request) == 1 else made

    run = SmallRun(tmp_path / "run", scope=Scope(answer))  # type: ignore[arg-type]
    run.run()
    findings = verify_run(run.folder)
    assert differing(findings) == ""
    assert "6 decisions" in " ".join(each.text for each in findings)


def test_of_a_run_of_an_older_version_it_is_said_what_cannot_be_verified(run: Path) -> None:
    path, lines = run / "decisions.jsonl", read(run / "decisions.jsonl")
    path.unlink()
    with Ledger(path) as ledger:
        for line in lines[:-1]:
            if line["kind"] in ("decision", "choice", "dose"):
                new = ("n", "time", "previous", "sha256", "kind", "trigger", "outcome")
                ledger.write(line["kind"], **{k: v for k, v in line.items() if k not in new})
    findings = verify_run(run)
    assert differing(findings) == ""
    unsure = {each.part for each in findings if each.state == "not verified"}
    assert {"experiment file", "decisions", "measured pixels"} <= unsure
    assert json.loads(path.read_text().splitlines()[0])["kind"] != "run"


def key(n: int) -> StackKey:
    return StackKey(0, f"p{n}", "Phase")


@pytest.mark.parametrize(
    "offs, states",
    [
        ({key(1): 0.0, key(2): 0.0}, ["holds"]),
        ({key(1): 0.01, key(2): 0.02}, ["holds"]),  # another engine, within the limit
        ({key(1): 0.0, key(2): 0.02, key(3): 0.0}, ["differs", "holds"]),  # an engine that can be exact
        ({}, ["not verified"]),
    ],
)
def test_a_stack_that_is_off_where_others_are_exact_was_changed(
    offs: dict[StackKey, float], states: list[str]
) -> None:
    assert [one.state for one in weigh(offs)] == states


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no run in"):
        verify_run(tmp_path / "nosuch")


def with_tables(run: Path) -> None:
    (run / "measurements.csv").write_text("state,value\nimaged,1\n")
    (run / "pairs.yaml").write_text("data: []\n")
    (run / "truth.json").write_text("{}")
    (run / "dose.csv").write_text("ms\n5\n")
    vouch_files(run)


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_byte_of_any_table_is_found(run: Path, name: str) -> None:
    with_tables(run)
    assert differing(verify_run(run)) == ""
    flip(run / name, 1)
    assert differing(verify_run(run)) == f"table: {name} is not as the run left it"
    (run / name).unlink()
    assert differing(verify_run(run)) == f"table: {name} is gone"


def test_a_table_that_a_killed_process_went_on_with_is_told(run: Path) -> None:
    with_tables(run)
    lines = (run / "decisions.jsonl").read_bytes()
    with Ledger(run / "decisions.jsonl") as ledger:
        ledger.write("order", rule="somebody", what="goes on", why="", done="done")
    table = run / "measurements.csv"
    table.write_bytes(table.read_bytes() + b"imaged,2\n")
    findings = verify_run(run)
    assert differing(findings) == ""
    assert any("9 bytes were added" in each.text for each in findings if each.state == "not verified")
    (run / "decisions.jsonl").write_bytes(lines)  # nobody went on: then nothing may be added
    assert "measurements.csv is not as" in differing(verify_run(run))
