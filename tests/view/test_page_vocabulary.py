"""The page's JavaScript against the schema of run events: no field is read that no event has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from pydantic import TypeAdapter

from acq_isl.commands import Command
from acq_isl.events import Event
from acq_isl.view.feed.messages import Header

STATIC = resources.files("acq_isl.view") / "static"
SCRIPTS = {path.name: path.read_text("utf-8") for path in STATIC.iterdir() if path.name.endswith(".js")}
SCHEMA: dict[str, Any] = TypeAdapter(Event).json_schema(mode="serialization")["$defs"]
FIELDS = {name: set(model["properties"]) for name, model in SCHEMA.items() if "properties" in model}
FIELDS["message"] = {*Header.model_fields, "jpegs"}
KINDS = {
    model["properties"]["kind"]["const"]: name
    for name, model in SCHEMA.items()
    if "kind" in model.get("properties", {})
}
# What variables and properties of these names hold, in every script.
HOLDS = {
    "message": ["message"],
    "event": list(KINDS.values()),
    "plan": ["RunStarted"],
    "planned": ["PlannedField"],
    "status": ["RunStatus"],
    "step": ["Step"],
    "progress": ["Progress"],
    "counts": ["Counts"],
    "latency": ["StageLatency"],
    "refused": ["NotPredicted"],
    "ranked": ["FieldRanked"],
    "decided": ["Decided"],
    "measured": ["Measured"],
    "times": ["StageTimes"],
}
# Of the language, or of the browser's own events and elements.
BUILT_IN = {"filter", "forEach", "includes", "length", "map", "replace", "some", "startsWith"}
BROWSER_EVENT = {"altKey", "code", "ctrlKey", "data", "key", "metaKey", "reason", "target"}
BROWSER_EVENT |= {"preventDefault", "stopPropagation"}


def words_only(script: str) -> str:
    """A script without comments and strings; what a template string computes stays."""
    script = re.sub(r"//[^\n]*|/\*.*?\*/", "", script, flags=re.S)
    return re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', script)


def reads(script: str) -> Iterator[tuple[str, str]]:
    """Names that hold events, each with a field that is read of it, also by taking it apart."""
    for name, field in re.findall(r"\b(\w+)(?=\??\.(\w+))", script):
        yield name, field
    for inside, name in re.findall(r"\{([^{}()=]*)\}\s*=\s*(?:\w+\??\.)*(\w+)\s*;", script):
        for field in re.findall(r"(?:^|,)\s*(\w+)", inside):
            yield name, field


def unknown(script: str) -> set[tuple[str, str]]:
    """Reads of fields that no event has."""
    text = words_only(script)
    found = set()
    for name, field in reads(text):
        known = set().union(*(FIELDS[model] for model in HOLDS.get(name, ()))) | BUILT_IN
        if name == "event":
            known |= BROWSER_EVENT
        if name in HOLDS and field not in known:
            found.add((name, field))
    everything = set().union(*FIELDS.values())
    found |= {("", field) for _, field in reads(text) if "_" in field and field not in everything}
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_field_that_the_page_reads_is_there(name: str) -> None:
    assert not unknown(SCRIPTS[name])


@pytest.mark.parametrize(
    "script",
    [
        "status.done / status.total",
        "const { engine } = run.status;",
        "field.ranked?.because",
        "one.pixel_size",
        "const { step, progress: { late_s } } = status; progress.late_s",
        "`${planned.x}`",
    ],
)
def test_a_field_that_is_not_there_would_be_found(script: str) -> None:
    assert unknown(script)


def test_the_scripts_do_read_events() -> None:
    everything = {name for script in SCRIPTS.values() for name, _ in reads(words_only(script))}
    assert set(HOLDS) <= everything


def test_every_kind_of_event_is_handled_or_named_as_ignored() -> None:
    cases = re.search(r"switch \(event\.kind\) \{(.*?)default:", SCRIPTS["run.js"], re.S)
    assert cases is not None
    assert set(re.findall(r'case "(\w+)":', cases.group(1))) == set(KINDS)


def test_the_page_gives_commands_that_a_run_takes() -> None:
    schema = TypeAdapter(Command).json_schema()["$defs"]
    commands = {model["properties"]["kind"]["const"]: set(model["properties"]) for model in schema.values()}
    sent = re.findall(r"connection\.send\(\{(.*?)\}\)", SCRIPTS["page.js"])
    kinds = set()
    for command in sent:
        fields = set(re.findall(r"(?:^|,)\s*(\w+):", command))
        found = [kind for kind in re.findall(r'"(\w+)"', command) if kind in commands]
        kinds.update(found)
        assert found and all(fields <= commands[kind] for kind in found), command
    assert kinds == set(commands)
