"""The models a server holds, by name; one can be replaced between two stacks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acq_isl.errors import ModelError
from acq_isl.manifest import SLACK, Manifest
from acq_isl.protocols import Engine
from acq_isl.stream.messages import MAX_MODELS, MAX_NAME, Offer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """A model that is ready to predict."""

    engine: Engine
    name: str = ""  # by which clients ask for it; the manifest's name if empty
    sha256: str = ""  # of the model file
    backend: str = ""  # what runs it, for people
    rungs: tuple[str, ...] = ()  # engines that could run it here, best first

    @property
    def offer(self) -> Offer:
        """What clients are told of it."""
        manifest = self.engine.manifest
        name, as_json = self.name or manifest.name, manifest.model_dump_json()
        return Offer(name=name, manifest=as_json, model_sha256=self.sha256, engine=self.backend)


def named(model: str) -> tuple[str, str]:
    """Name and file of ``NAME=FILE``; without a name, or if that is the name of a file, only the file."""
    name, equals, file = model.partition("=")
    return (name, file) if equals and name and file and not Path(model).exists() else ("", model)


class ModelRegistry:
    """Models in the order in which they were given; the first is the one nobody needs to name.

    Read by any thread, changed by the engine's thread only. The models are closed with it. ModelError if
    there is none, too many, or two of one name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name or model.engine.manifest.name: model for model in models}
        if not 0 < len(self._models) <= MAX_MODELS or len(self._models) < len(models):
            names = [model.name or model.engine.manifest.name for model in models]
            raise ModelError(
                "the models of a server must have different names",
                wanted=f"1 to {MAX_MODELS} names",
                got=", ".join(names) or "no model",
                fix="give names: acq-isl serve --model mine=FILE --model theirs=FILE",
            )
        if any(not 0 < len(name) <= MAX_NAME for name in self._models):
            raise ModelError("the name of a model is too long", wanted=f"1 to {MAX_NAME} characters")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._models)

    @property
    def offers(self) -> tuple[Offer, ...]:
        return tuple(model.offer for model in self._models.values())

    def __getitem__(self, name: str) -> ServedModel:
        """The model of a name, or the first for an empty one; ModelError if there is none."""
        found = next(iter(self._models.values())) if not name else self._models.get(name)
        if found is None:
            raise ModelError(
                f"this engine has no model {name!r}",
                wanted=", ".join(self._models),
                got=name,
                fix="ask for one of these, or serve the model: acq-isl serve --model FILE --model ...",
            )
        return found

    def named(self, name: str, new: ServedModel) -> str:
        """The name of the model that a new one shall replace; ModelError if that is not clear."""
        if not name and len(self._models) == 1:
            return self.names[0]
        wanted = name or new.engine.manifest.name
        self[wanted]
        return wanted

    def replace(self, name: str, new: ServedModel) -> ServedModel:
        """Put a model in another's place, under its name; the old one, now the caller's to close."""
        old = self[name]
        self._models[name] = replace(new, name=name)
        return old

    def close(self) -> None:
        """Close all engines, each even if another fails."""
        for model in self._models.values():
            close(model)


def close(model: ServedModel) -> None:
    """Close an engine that nobody uses any more; its failure concerns nobody either."""
    try:
        model.engine.close()
    except Exception:
        log.exception("the engine of %s could not be closed", model.name)


def changes(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """What a client would notice if one model took the other's place, in words.

    Other weights, another version or training set are what a swap is for, and no change in this sense.
    """
    found = []
    if old.label_names != new.label_names:
        found.append(f"labels: {', '.join(old.label_names)} -> {', '.join(new.label_names)}")
    if old.planes != new.planes or not np.allclose(
        old.z_offsets_um, new.z_offsets_um, rtol=0, atol=max(SLACK * old.z_step_um, 1e-6)
    ):
        found.append(f"planes: {old.planes} of {old.z_step_um:g} um -> {new.planes} of {new.z_step_um:g} um")
    if old.any_planes != new.any_planes:
        found.append(
            "planes: the other one takes any" if old.any_planes is None else "planes: other ones are taken"
        )
    if abs(old.pixel_size_um - new.pixel_size_um) > SLACK * old.pixel_size_um:
        found.append(f"pixel size: {old.pixel_size_um:g} um -> {new.pixel_size_um:g} um")
    for what in ("modality", "polarity"):
        before, after = getattr(old, what), getattr(new, what)
        if before != after:
            found.append(f"{what}: {before} -> {after}")
    return tuple(found)
