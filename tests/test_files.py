"""What people write is read within a moment, whatever it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.files import load_yaml, read_text

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "[" * 100_000,
        "{a: " * 50_000,
        f"seed: {'9' * 5000}",
        "&a [*a]",
        "&a {b: *a}",
        "when: 2026-02-31",
        "key: [unclosed",
        "!!python/object/apply:os.system [echo]",
    ],
    ids=["aliases", "lists", "maps", "digits", "itself", "its own map", "date", "syntax", "object"],
)
def test_what_nobody_writes_is_an_error_of_yaml_and_of_the_experiment(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
    with pytest.raises(ExperimentError, match="not valid YAML"):
        Experiment.from_text(text)


def test_what_people_write_is_read() -> None:
    assert load_yaml("") is None
    for twice in ("a: 1\nb: 2\na: 3\n", "limits: {x: 1, x: 2}", "- {b: [{c: 1, c: 1}]}"):
        with pytest.raises(yaml.YAMLError, match="given twice"):
            load_yaml(twice)
    assert load_yaml("[{a: 1}, {a: 2}]") == [{"a": 1}, {"a": 2}]
    assert load_yaml("a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}
    assert load_yaml("when: 2026-02-28T10:00:00") == yaml.safe_load("when: 2026-02-28T10:00:00")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text("abc\n: -"), st.lists))
def test_it_reads_what_yaml_reads(value: object) -> None:
    assert load_yaml(yaml.safe_dump(value)) == value


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_pipes_devices_and_huge_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_bytes(b"")
    os.truncate(tmp_path / "huge", 1 << 30)
    for path in (tmp_path / "pipe", tmp_path / "huge", Path("/dev/zero")):
        with pytest.raises(OSError, match=r"ordinary|larger"):
            read_text(path)
        with pytest.raises(ExperimentError, match="cannot be read"):
            Experiment.from_yaml(path)
