"""The page of every key and the editors' schema say what the experiment file takes."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from acq_isl.base import StrictModel
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.reference import EXAMPLES as PARTS
from acq_isl.experiment.reference import _subclasses, describe_schema, write_reference
from acq_isl.rules import Measurement, Segmenter

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def written() -> str:
    return write_reference()


@pytest.fixture(scope="module")
def check() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(describe_schema())


def test_the_page_is_the_one_that_is_written(written: str) -> None:
    page = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")
    assert page == written, "acq-isl schema --reference > docs/experiment.md"


def test_every_key_of_ours_says_what_it_is(written: str) -> None:
    page = written
    for key in Experiment.model_fields:
        [row] = [line for line in page.split("## ")[1].splitlines() if line.startswith(f"| `{key}` |")]
        assert row.split("|")[4].strip(), key


@pytest.mark.parametrize("text", ["choose: {k: 2}", "overvew: {}", "triggers: [{do: {kind: image}}]"])
def test_editors_underline_what_the_program_refuses(
    check: jsonschema.Draft202012Validator, text: str
) -> None:
    whole = yaml.safe_load((ROOT / "examples" / "my_scope.yaml").read_text(encoding="utf-8"))
    assert check.is_valid(whole)
    assert not check.is_valid(whole | yaml.safe_load(text))


@pytest.mark.parametrize("title", PARTS)
def test_every_example_is_read(title: str) -> None:
    models = {model.__name__: model for model in _subclasses(StrictModel)}
    assert models[title].model_validate(yaml.safe_load(PARTS[title]))


def test_every_rule_has_an_example() -> None:
    kinds = {kind.__name__ for point in (Measurement, Segmenter) for kind in point.built_in()}
    trees = {"AllOf", "AnyOf", "NotThis", "Threshold", "Trigger"}
    others = {"Best", "Weighted", "Diverse", "Quota", "Pareto", "RevisitWhen", "TimeBudget", "Queue", "Rate"}
    assert kinds | trees | others <= PARTS.keys()
