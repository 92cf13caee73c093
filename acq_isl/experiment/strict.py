"""What is written in an experiment file is understood, or an error that names the nearest valid key.

Also inside the useq-schema parts, where useq itself would ignore a key that it does not know.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import useq
from pydantic import BaseModel, WrapValidator
from pydantic_core import ErrorDetails

from acq_isl.errors import suggest
from acq_isl.rules.plugins import PluginPoint


def explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    """One error of pydantic in a file that is read as ``model``: where, and what to change."""
    where = _where(detail["loc"])
    if detail["type"] == "extra_forbidden":
        parent, key = detail["loc"][:-1], str(detail["loc"][-1])
        return _unknown(key, _keys_at(model, parent), _where(parent))
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _where(location: tuple[int | str, ...]) -> str:
    """A location of pydantic without the tags that nobody writes; trees are tagged by a key that follows."""
    parts = [part for part in location if part not in ("threshold", "best")]
    return ".".join(str(part) for part, before in zip(parts, [None, *parts], strict=False) if part != before)


def _unknown(key: str, valid: Iterable[str], where: str) -> str:
    inside = f" in {where}" if where else ""
    return f"unknown key {key!r}{inside}; {suggest(key, valid, 'valid keys are')}"


def _refuse_ignored(raw: object, parsed: object, where: str = "") -> None:
    """Compare what was written with what useq understood; what it ignored is an error."""
    if isinstance(raw, Mapping) and isinstance(parsed, BaseModel):
        fields = type(parsed).model_fields
        names = {**{name: name for name in fields}, **{f.alias: n for n, f in fields.items() if f.alias}}
        values = vars(parsed)  # not dict(): a sequence iterates over its events
        for key, value in raw.items():
            if key not in names:
                raise ValueError(_unknown(str(key), names, where))
            _refuse_ignored(value, values.get(names[key]), f"{where}.{key}" if where else key)
    elif isinstance(raw, (list, tuple)) and isinstance(parsed, (list, tuple)):
        for index, (item, understood) in enumerate(zip(raw, parsed, strict=False)):
            _refuse_ignored(item, understood, f"{where}[{index}]")


def _strict_sequence(raw: Any, handler: Any) -> useq.MDASequence:
    # 'tpgcz' keeps the planes of a stack together, which useq's own default order does not promise.
    given = {"axis_order": "tpgcz", **raw} if isinstance(raw, Mapping) else raw
    with warnings.catch_warnings(record=True) as ignored:
        warnings.simplefilter("always")
        parsed: useq.MDASequence = handler(given)
    if ignored:  # useq-schema warns where something that was written is not used
        raise ValueError(str(ignored[0].message))
    _refuse_ignored(raw, parsed)
    return parsed


Sequence = Annotated[useq.MDASequence, WrapValidator(_strict_sequence)]
"""A useq-schema sequence; a key that useq would ignore is an error."""


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Valid keys of the model that a pydantic error location points into."""
    found: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [inner.model_fields[name] for inner in found if (name := _field_name(inner, part))]
        if fields:
            found = [inner for field in fields for inner in _models(field.annotation)]
        else:  # the tag of a union: a kind, or a key that only one of its models has
            found = [model for model in found if part in _tags(model)] or found
    return {field.alias or key for inner in found for key, field in inner.model_fields.items()}


def _field_name(model: type[BaseModel], key: str) -> str:
    """The field that is written as a key; empty if there is none."""
    return next((name for name, field in model.model_fields.items() if key in (name, field.alias)), "")


def _tags(model: type[BaseModel]) -> set[str]:
    if "kind" in model.model_fields:
        return set(get_args(model.model_fields["kind"].annotation))
    return {field.alias or name for name, field in model.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list, dict):
        return [model for part in get_args(annotation) for model in _models(part)]
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    return list(annotation.kinds().values()) if issubclass(annotation, PluginPoint) else [annotation]
