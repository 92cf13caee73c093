"""Faults as one short text, in experiment files and on the command line. Pure.

::

    focus-drift:2                        2 um a minute, from the start
    stuck-shutter:after=30               from the 31st exposure on
    preset-fails:DAPI,times=3            the next three times it is set
    dropped-frames:every=10,until_s=60   in the first minute
    dropped-frames:at=3+7                exposures 3 and 7, counted from 0
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from acq_isl.errors import ExperimentError
from acq_isl.experiment.faults import MANY, Fault


def _kinds() -> dict[str, Any]:
    """Class of each fault by its kind."""
    return {one.__dataclass_fields__["kind"].default: one for one in get_args(Fault)}


def _spelled_out(raw: Any) -> Any:
    """A fault's short text, or its keys, checked; what is neither is left to pydantic."""
    if isinstance(raw, str):
        raw = _keys_of(raw)
    if not isinstance(raw, Mapping):
        return raw
    kinds = _kinds()
    kind = raw.get("kind")
    if kind not in kinds:
        raise ValueError(f"there is no fault {kind!r}; {_near(str(kind), list(kinds))}")
    names = list(kinds[kind].__dataclass_fields__)
    for key in raw:
        if key not in names:
            raise ValueError(f"{kind} has no {key!r}; {_near(str(key), [n for n in names if n != 'kind'])}")
    return raw


def _keys_of(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    kind = kind.strip()
    keys: dict[str, Any] = {"kind": kind}
    if kind not in _kinds():
        return keys
    fields = dataclasses.fields(_kinds()[kind])
    unnamed = [f.name for f in fields if not f.kw_only]
    for word in filter(None, (one.strip() for one in rest.split(","))):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            if not unnamed:
                raise ValueError(f"{kind}: what is {word!r}? Write name=value")
            name, value = unnamed[0], word
        if name in unnamed:
            unnamed.remove(name)
        keys[name] = tuple(value.split(MANY)) if name == "at" else value
    return keys


def _near(wrong: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(valid))}"


FaultText = Annotated[Fault, Field(discriminator="kind"), BeforeValidator(_spelled_out)]
"""For a pydantic model: a fault as its short text or its keys."""


def parse_fault(text: str) -> Fault:
    """Read ``kind:value,name=value``; a value without a name is that of the next parameter in order.

    Raises
    ------
    ExperimentError
        There is no such fault, parameter or value; names the nearest.
    """
    try:
        found: Fault = TypeAdapter(FaultText).validate_python(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        raise ExperimentError(
            f"the fault {text!r} cannot be planted",
            got=f"{where}: {message}" if where else message,
            fix="write it like focus-drift:2 or stuck-shutter:after=30",
        ) from error
    return found
