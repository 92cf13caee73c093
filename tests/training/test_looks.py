"""How often a set was scored is noted, counted, and said by the model's card."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from acq_isl.cli.app import cli
from acq_isl.engines import describe
from acq_isl.engines.model_file import provenance
from acq_isl.errors import StorageError
from acq_isl.manifest import Looks
from acq_isl.training.looks import count_looks, note_look, read_looks
from doubles import tiny_model as tiny


def test_looks_are_counted_by_set_and_purpose(tmp_path):
    log = tmp_path / "häuser" / "looks.jsonl"
    for name, why in (("field", "rates"), ("field", "rates"), ("other lab", "card")):
        note_look(log, name, ["demo"], why)
    found = count_looks((), read_looks(log))
    assert [(each.dataset, each.times, each.why) for each in found] == [
        ("field", 2, "rates"), ("other lab", 1, "card")]  # fmt: skip
    assert all(each.last for each in found)


def test_a_log_that_has_grown_replaces_its_own_counts_only(tmp_path):
    log = tmp_path / "looks.jsonl"
    before = (
        Looks(dataset="field", why="rates", times=1, last=""),
        Looks(dataset="old", why="x", times=9, last=""),
    )
    note_look(log, "field", [], "rates")
    note_look(log, "field", [], "rates")
    once = count_looks(before, read_looks(log))
    assert {each.dataset: each.times for each in once} == {"field": 2, "old": 9}
    assert count_looks(once, read_looks(log)) == once


def test_a_line_that_is_no_look_is_named(tmp_path):
    log = tmp_path / "looks.jsonl"
    note_look(log, "field", [], "rates")
    log.write_text(log.read_text() + '{"dataset": 3}\n')
    with pytest.raises(StorageError, match=r"line 2 .*no look"):
        read_looks(log)
    with pytest.raises(StorageError, match="cannot be read"):
        read_looks(tmp_path / "none.jsonl")


def test_the_card_of_a_model_says_it(tmp_path):
    tiny_model_file = tiny.write(tmp_path)
    note_look(tmp_path / "looks.jsonl", "recorded field", ["demo"], "choosing teachers")
    result = CliRunner().invoke(cli, ["looks", str(tmp_path / "looks.jsonl"), "--into", str(tiny_model_file)])
    assert result.exit_code == 0, result.output
    assert "recorded field: 1 times" in result.output
    rows = dict(provenance(describe(tiny_model_file).manifest))
    assert rows["looked at"].startswith("recorded field: scored 1 times while choosing")
