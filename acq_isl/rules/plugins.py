"""Kinds of measurements, actions and segmenters that other packages add, found by their entry points."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Self, Union

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from acq_isl.base import StrictModel
from acq_isl.errors import suggest

_OURS = "acq-isl"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plug-in that is installed and cannot be used: its name, package, and why."""

    name: str
    package: str
    why: str

    def __str__(self) -> str:
        return f"the plug-in {self.name!r} of {self.package} is not used: {self.why}"


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Class of every kind of a point, package and version of those that are not ours, and what is broken."""

    classes: dict[str, Any]
    packages: dict[str, str]
    broken: tuple[BrokenPlugin, ...]


def forget_plugins() -> None:
    """Look for plug-ins anew, such as one that was installed while this program runs."""
    _find.cache_clear()
    _adapter.cache_clear()


class PluginPoint(StrictModel):
    """Base of models that an experiment names by their ``kind`` and other packages can add to.

    A direct subclass is the point: it names its group of entry points and what is built in. Its subclasses
    are the kinds; each has a field ``kind`` whose default is the name of its entry point. A pydantic field
    annotated with the point takes any kind; the kinds are looked up when the first value is validated.
    """

    plugin_group: ClassVar[str]
    kind: str

    @classmethod
    def built_in(cls) -> tuple[type[Self], ...]:
        """The kinds that come with acq-isl."""
        raise NotImplementedError

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Class of every kind that can be used."""
        return dict(_find(cls).classes)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "plugin_group" not in cls.__dict__:
            return handler(source)
        return core_schema.with_info_plain_validator_function(cls._read)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        if "plugin_group" not in cls.__dict__:
            return handler(schema)
        kinds = [handler(kind.__pydantic_core_schema__) for kind in cls.kinds().values()]
        return {"oneOf": kinds, "discriminator": {"propertyName": "kind"}}

    @classmethod
    def _read(cls, raw: object, info: ValidationInfo) -> Self:
        if isinstance(raw, cls):
            return raw
        if (
            isinstance(raw, Mapping)
            and len(raw) == 1
            and isinstance(inner := next(iter(raw.values())), Mapping)
        ):
            raw = {"kind": next(iter(raw)), **inner}  # as python: {function: ...}
        kind = raw.get("kind") if isinstance(raw, Mapping) else None
        if not isinstance(kind, str) or kind not in cls.kinds():
            raise ValueError(_unknown_kind(cls, kind, info.context))
        read: Self = _adapter(cls).validate_python(raw, context=info.context)
        return read


def broken_plugins() -> tuple[BrokenPlugin, ...]:
    """Plug-ins of all points that are installed and cannot be used."""
    return tuple(plugin for point in PluginPoint.__subclasses__() for plugin in _find(point).broken)


def packages_of(model: StrictModel) -> dict[str, str]:
    """Package and version by kind of every plug-in that a model or its fields use."""
    found = {}
    for point in PluginPoint.__subclasses__():
        if isinstance(model, point) and model.kind in _find(point).packages:
            found[model.kind] = _find(point).packages[model.kind]
    for _, value in model:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, StrictModel):
                found |= packages_of(inner)
    return found


@cache
def _find(point: type[PluginPoint]) -> _Kinds:
    """Load the entry points of a point, once; what cannot be used is logged and listed as broken."""
    classes: dict[str, Any] = {kind.model_fields["kind"].default: kind for kind in point.built_in()}
    packages: dict[str, str] = {}
    broken = []
    for entry in entry_points(group=point.plugin_group):
        package = entry.dist.name if entry.dist else "an unknown package"
        if package == _OURS:
            continue  # built in: known without metadata, which a checkout may have of an older version
        try:
            plugin = entry.load()
            why = _fault(point, entry.name, plugin, classes)
        except Exception as error:
            log.warning("the plug-in %r of %s cannot be loaded", entry.name, package, exc_info=True)
            why = f"{type(error).__name__}: {error}"
        if why:
            broken.append(BrokenPlugin(entry.name, package, why))
        else:
            classes[entry.name] = plugin
            packages[entry.name] = f"{package}=={entry.dist.version}" if entry.dist else package
    return _Kinds(classes, packages, tuple(broken))


def _fault(point: type[PluginPoint], name: str, plugin: Any, classes: Mapping[str, Any]) -> str:
    """What keeps a plug-in from being a kind of a point; empty if nothing does."""
    if not (isinstance(plugin, type) and issubclass(plugin, point)):
        return f"it is no class derived from {point.__module__}.{point.__name__}"
    kind = plugin.model_fields["kind"].default
    if kind != name:
        return f"its entry point is named {name!r}, its kind {kind!r}"
    if name in classes:
        return f"there is another {name!r}, in {classes[name].__module__}"
    missing = sorted(plugin.__abstractmethods__)
    return f"it does not define {', '.join(missing)}" if missing else ""


@cache
def _adapter(point: type[PluginPoint]) -> TypeAdapter[Any]:
    tagged: Any = Annotated[Union[tuple(point.kinds().values())], Field(discriminator="kind")]  # noqa: UP007
    return TypeAdapter(tagged)


def _unknown_kind(point: type[PluginPoint], kind: object, context: Any) -> str:
    """What is wrong with a kind, the nearest that there is, and which package has it, if that is known."""
    what, there = point.__name__.lower(), sorted(point.kinds())
    if kind is None:
        return f"every {what} needs its kind, one of {', '.join(there)}"
    text = f"there is no {what} {kind!r}; {suggest(str(kind), there)}"
    for broken in _find(point).broken:
        if broken.name == kind:
            return f"{text}; {broken}"
    package = context.get(kind) if isinstance(context, Mapping) else None
    return f"{text}; it comes with another package: pip install {package}" if package else text
