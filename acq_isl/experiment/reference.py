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
_PLAIN = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true, false"}
_HEAD = """\
# Experiment file: every key

Written by `acq-isl schema --reference`; do not edit. `acq-isl schema > experiment.schema.json` writes the
same as a JSON schema: with `# yaml-language-server: $schema=experiment.schema.json` in the first line of the
experiment file, editors such as VS Code (extension *YAML*) complete keys and underline mistakes.

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
    if kind:
        lines += [f"    {{kind: {kind}{_needed(part)}}}", ""]
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    for key, value in part["properties"].items():
        if key != "kind":
            default = "needed" if key in part.get("required", ()) else _default(value.get("default"))
            text = " ".join(value.get("description", "").split())
            lines.append(f"| `{key}` | {_type(value, parts)} | {default} | {text} |")
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
