"""The experiment file described: a JSON schema for editors, and a page with every key."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from acq_isl.base import StrictModel
from acq_isl.experiment.experiment import Experiment

_USEQ = "https://pymmcore-plus.github.io/useq-schema/schema/sequence/"
_UNITS = (
    ("_um_h", "um/h"), ("_um2", "um2"), ("_um", "um"), ("_ms", "ms"), ("_per_h", "1/h"), ("per_h", "1/h"),
    ("_h", "h"), ("_px", "px"), ("_s", "s"), ("_mj_cm2", "mJ/cm2"),
)  # fmt: skip
"""By the end of a key."""
_COUNT = "{kind: object_count, label: nuclei}"
_MANY = f"{{measurement: {_COUNT}, above: 10, unit: objects}}"
_GROWS = f"{{measurement: {{change: {{of: {_COUNT}}}}}, above: 0}}"
_NEW = "{kind: novelty}"
_SELDOM = f"{{measurement: {_NEW}, weight: -1}}"
_IMAGE = "{kind: image, channels: [DAPI], exposure_ms: 50}"
EXAMPLES = {
    "AllOf": f"{{all: [{_MANY}, {_GROWS}], for: 2}}",
    "AnyOf": f"{{any: [{_MANY}, {_GROWS}]}}",
    "Area": "{kind: area, label: dendrites, above: 0.3}",
    "AreaFraction": "{kind: area_fraction, label: nuclei, above: 0.2}",
    "Best": f"{{k: 3, measurement: {_COUNT}}}",
    "BranchPoints": "{kind: branch_points, label: axons}",
    "Call": "{kind: call, function: 'my_rules:act'}",
    "Cellpose": "{kind: cellpose, diameter_um: 9}",
    "Change": f"{{kind: change, of: {_COUNT}, since: first}}",
    "Confluency": "{kind: confluency, label: nuclei, also: [dendrites]}",
    "Density": "{kind: density, label: nuclei}",
    "Diverse": f"{{kind: diverse, k: 4, by: [{_COUNT}, {{kind: confluency, label: dendrites}}]}}",
    "FocusOffset": "{kind: focus_offset}",
    "Goal": f"{{measurement: {_COUNT}, descending: false}}",
    "GrowthRate": "{kind: growth_rate, of: {kind: length, label: axons}, visits: 4}",
    "ImageField": "{kind: image, channels: [DAPI], exposure_ms: 50}",
    "IntegratedIntensity": "{kind: integrated_intensity, label: nuclei}",
    "Limits": "{x_um: [-2000, 2000], y_um: [-2000, 2000], z_um: [-50, 50], exposure_ms: 100}",
    "MeanIntensity": "{kind: mean_intensity, label: nuclei}",
    "NetworkLength": "{kind: length, label: axons}",
    "NotThis": f"{{not: {_MANY}}}",
    "Novelty": "{kind: novelty}",
    "ObjectCount": _COUNT,
    "ObjectShape": "{kind: object, label: nuclei, what: area, statistic: median}",
    "Pareto": f"{{kind: pareto, k: 2, goals: [{{measurement: {_COUNT}}}, {{measurement: {_NEW}}}]}}",
    "PythonFunction": "{kind: python, function: 'my_rules:round_cells', unit: objects}",
    "Quality": "{kind: quality}",
    "Queue": f"{{kind: queue, fields: 4, within_s: 3600, urgent: {_MANY}, urgent_within_s: 600}}",
    "Quota": f"{{kind: quota, each: 1, measurement: {_COUNT}}}",
    "Rate": f"{{kind: rate, per_h: 2, when: {_GROWS}, then_per_h: 12}}",
    "RevisitWhen": f"{{kind: when, when: {_GROWS}, else_every: 4}}",
    "SetPreset": "{kind: set_preset, group: Channel, preset: DAPI}",
    "Share": "{kind: share, label: nuclei, positive: dead}",
    "StarDist": "{kind: stardist}",
    "Term": f"{{measurement: {_COUNT}, weight: 2}}",
    "Threshold": _MANY,
    "TimeBudget": f"{{kind: budget, time_s: 120, measurement: {_COUNT}}}",
    "Trigger": f"{{name: many, when: {_MANY}, do: {_IMAGE}, at_most: 3}}",
    "Uncertainty": "{kind: uncertainty, label: nuclei}",
    "Watershed": "{kind: watershed, above: 0.3, min_area_um2: 20}",
    "Weighted": f"{{kind: weighted, k: 3, terms: [{{measurement: {_COUNT}}}, {_SELDOM}]}}",
}  # fmt: skip
"""One of each part of an experiment file, as it is written there; a test reads them."""
_PLAIN = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true, false"}
_HEAD = """\
# Experiment file: every key

Written by `acq-isl schema --reference`; do not edit. `acq-isl schema > experiment.schema.json` writes the
same as a JSON schema: with `# yaml-language-server: $schema=experiment.schema.json` in the first line of the
experiment file, editors such as VS Code (extension *YAML*) complete keys and underline mistakes;
[Write a rule](rules.md#completion-in-an-editor) says how.

`overview` and `revisit` are [useq-schema](USEQ) sequences: positions, grids, wells, channels, z, time, focus.
What of them is performed, and how, says [See it live](live.md#what-of-an-experiments-sequences-is-performed).
Plug-ins add further kinds of measurements, segmenters and actions.
""".replace("USEQ", _USEQ)


def describe_schema() -> dict[str, Any]:
    """The JSON schema of experiment files, with the plug-ins that are installed, and what each key means."""
    schema = Experiment.model_json_schema()
    models = {model.__name__: model for model in _subclasses(StrictModel)}
    for part in _objects(schema):
        model = models.get(part.get("title", ""))
        for key, text in (_describe_fields(model) if model else {}).items():
            if key in part["properties"]:
                part["properties"][key].setdefault("description", text)
    return schema


def write_reference() -> str:
    """The page with every key, its type, default and meaning, in Markdown."""
    schema = describe_schema()
    models = {model.__name__ for model in _subclasses(StrictModel)}
    parts = {part["title"]: part for part in _objects(schema) if part.get("title") in models}
    names = ["Experiment", *sorted(name for name in parts if name != "Experiment")]
    return "\n".join([_HEAD, *(_section(parts[name], parts) for name in names)]).replace("``", "`")


def _section(part: dict[str, Any], parts: dict[str, Any]) -> str:
    kind = part["properties"].get("kind", {}).get("const")
    about = " ".join(part.get("description", "").split("\n\n")[0].split())
    lines = [f"## {part['title']}", "", about, ""]
    if part["title"] in EXAMPLES or kind:
        lines += [f"    {EXAMPLES.get(part['title']) or f'{{kind: {kind}{_needed(part)}}}'}", ""]
    lines += ["| key | type | unit | default | |", "|---|---|---|---|---|"]
    for key, value in part["properties"].items():
        if key != "kind":
            default = "needed" if key in part.get("required", ()) else _default(value.get("default"))
            text = " ".join(value.get("description", "").split())
            unit = next((unit for end, unit in _UNITS if key.endswith(end)), "")
            lines.append(f"| `{key}` | {_type(value, parts)} | {unit} | {default} | {text} |")
    return "\n".join([*lines, ""])


def _needed(part: dict[str, Any]) -> str:
    return "".join(f", {key}: ..." for key in part.get("required", ()) if key != "kind")


def _default(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, dict):
        return f"`{value['kind']}`" if "kind" in value else "as below"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(value: dict[str, Any], parts: dict[str, Any]) -> str:
    """A type in words, with links to the sections of this page."""
    name = value.get("$ref", value.get("title", "")).rpartition("/")[2]
    match value:
        case _ if name in parts:
            words = f"[{name}](#{name.lower()})"
        case {"$ref": _}:
            short = name.rpartition("__")[2]
            words = f"[{short}]({_USEQ})" if short == "MDASequence" else short  # or a fault
        case {"anyOf": several} | {"oneOf": several}:
            inner = [_type(one, parts) for one in several if one.get("type") != "null"]
            words = " or ".join(dict.fromkeys(inner))
        case {"enum": several}:
            words = ", ".join(f"`{one}`" for one in several)
        case {"const": one}:
            words = f"`{one}`"
        case {"prefixItems": several}:
            words = f"[{', '.join(_type(one, parts) for one in several)}]"
        case {"type": "array"}:
            words = f"list of {_type(value.get('items', {}), parts)}"
        case {"type": "object"}:
            words = f"names to {_type(value.get('additionalProperties') or {}, parts)}"
        case _:
            words = _PLAIN.get(value.get("type", ""), "any") + _bounds(value)
    return words


def _bounds(value: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {value[name]:g}" for name, sign in signs.items() if name in value)


def _subclasses(model: type[StrictModel]) -> Iterator[type[StrictModel]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _subclasses(inner)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every part of a schema that has properties."""
    if isinstance(value, dict):
        if isinstance(value.get("properties"), dict):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


def _describe_fields(model: type[StrictModel]) -> dict[str, str]:
    """The sentence under each field of a model and its bases; pydantic would read it at every start."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls is not StrictModel and issubclass(cls, StrictModel):
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
            statements = body.body if isinstance(body, ast.ClassDef) else []
            for field, text in pairwise(statements):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(said))
                    ) if name in model.model_fields:
                        key = model.model_fields[name].alias or name
                        found[key] = re.sub(r"\s+", " ", inspect.cleandoc(said))
    return found
