"""Kinds of measurements, actions and segmenters that other packages add, found by their entry points."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Self, Union

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from acq_isl.base import StrictModel

_OURS = "acq-isl"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plug-in that is installed and cannot be used: its group, name, package, and why."""

    group: str
    name: str
    package: str
    why: str

    def __str__(self) -> str:
        return f"the plug-in {self.name!r} of {self.package} is not used: {self.why}"


@dataclass(frozen=True, slots=True)
class Plugins:
    """The plug-ins of one group that are installed beside acq-isl.

    Parameters
    ----------
    objects : mapping of name to object
        What each entry point leads to.
    packages : mapping of name to str
        Package and version of each, such as ``my-plugin==1.0``.
    broken : tuple of BrokenPlugin
    """

    objects: Mapping[str, Any]
    packages: Mapping[str, str]
    broken: tuple[BrokenPlugin, ...]


@cache
def find_plugins(group: str) -> Plugins:
    """Load the entry points of a group, once; one that fails is logged and listed as broken."""
    objects: dict[str, Any] = {}
    packages: dict[str, str] = {}
    broken = []
    for entry in entry_points(group=group):
        package = "" if entry.dist is None else entry.dist.name
        if package == _OURS:
            continue  # built in: known without metadata, which a checkout may have of an older version
        try:
            if entry.name in objects:
                raise ValueError(f"{packages[entry.name]} has one of this name")
            objects[entry.name] = entry.load()
            packages[entry.name] = f"{package}=={entry.dist.version}" if entry.dist else ""
        except Exception as error:
            log.warning("the plug-in %r of %s cannot be loaded", entry.name, package, exc_info=True)
            broken.append(BrokenPlugin(group, entry.name, package, f"{type(error).__name__}: {error}"))
    return Plugins(objects, packages, tuple(broken))


def forget_plugins() -> None:
    """Look for plug-ins anew, such as one that was installed while this program runs."""
    for cached in (find_plugins, _kinds, _adapter):
        cached.cache_clear()


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
        return _kinds(cls)[0]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "plugin_group" not in cls.__dict__:
            return handler(source)
        return core_schema.with_info_plain_validator_function(cls._read)

    @classmethod
    def _read(cls, raw: object, info: ValidationInfo) -> Self:
        if isinstance(raw, cls):
            return raw
        kind = raw.get("kind") if isinstance(raw, Mapping) else None
        if kind not in cls.kinds():
            raise ValueError(_unknown_kind(cls, kind, info.context))
        read: Self = _adapter(cls).validate_python(raw, context=info.context)
        return read


def broken_plugins() -> tuple[BrokenPlugin, ...]:
    """Plug-ins of all points that are installed and cannot be used."""
    return tuple(plugin for point in PluginPoint.__subclasses__() for plugin in _kinds(point)[1])


def packages_of(model: StrictModel) -> dict[str, str]:
    """Package and version by kind of every plug-in that a model or its fields use."""
    found = {}
    if isinstance(model, PluginPoint):
        packages = find_plugins(model.plugin_group).packages
        if model.kind in packages:
            found[model.kind] = packages[model.kind]
    for _, value in model:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, StrictModel):
                found |= packages_of(inner)
    return found


@cache
def _kinds(point: type[PluginPoint]) -> tuple[dict[str, Any], tuple[BrokenPlugin, ...]]:
    found: dict[str, Any] = {one.model_fields["kind"].default: one for one in point.built_in()}
    plugins = find_plugins(point.plugin_group)
    broken = list(plugins.broken)
    for name, plugin in plugins.objects.items():
        if why := _fault(point, name, plugin, found):
            broken.append(BrokenPlugin(point.plugin_group, name, plugins.packages[name], why))
            log.warning("%s", broken[-1])
        else:
            found[name] = plugin
    return found, tuple(broken)


def _fault(point: type[PluginPoint], name: str, plugin: Any, found: Mapping[str, Any]) -> str:
    """What keeps a plug-in from being a kind of a point; empty if nothing does."""
    if not (isinstance(plugin, type) and issubclass(plugin, point)):
        return f"it is no class derived from {point.__module__}.{point.__name__}"
    kind = plugin.model_fields["kind"].default
    if kind != name:
        return f"its entry point is named {name!r}, its kind {kind!r}"
    if name in found:
        return f"acq-isl has a kind {name!r} of its own"
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
        return f"a {what} needs its kind, one of {', '.join(there)}"
    near = difflib.get_close_matches(str(kind), there, n=1)
    text = f"there is no {what} {kind!r}; "
    text += f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there)}"
    for broken in _kinds(point)[1]:
        if broken.name == kind:
            return f"{text}; {broken}"
    package = context.get(kind) if isinstance(context, Mapping) else None
    return f"{text}; it comes with another package: pip install {package}" if package else text
