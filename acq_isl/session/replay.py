"""Predict what an earlier run left in its spool, and add it to that run's predictions.

A stack leaves the spool when all its predictions are on disk, were read back, and are what was predicted;
until then nothing is deleted, so a replay may be stopped and started again at any time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from acq_isl.errors import EngineError, ModelError, StackRefused, StorageError
from acq_isl.manifest import Manifest
from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackKey, Unpredicted, ZStack
from acq_isl.storage.prediction_store import PredictionStore, field_name, load, stored
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Wanted
from acq_isl.stream.model_registry import ModelRegistry
from acq_isl.stream.spool import SUFFIX, Spool, SpooledStack

STORE = "predictions.ome.zarr"
_DEFAULT = ("",)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one waiting stack.

    Parameters
    ----------
    path : Path
        Its file in the spool.
    told : tuple of str
        For each model what happened, for people.
    done : bool
        Everything asked for is in the store, and the file is gone.
    """

    path: Path
    told: tuple[str, ...]
    done: bool


class Models(Protocol):
    """Who predicts: engines in this process, or a server."""

    def manifests(self) -> dict[str, tuple[Manifest, str]]:
        """Manifest and hash by name; the first is the one that nobody needs to name."""

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Outcome]:
        """One outcome of each model."""


class LocalModels:
    """Engines in this process.

    Parameters
    ----------
    registry : ModelRegistry
        Closing it stays with the caller.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def manifests(self) -> dict[str, tuple[Manifest, str]]:
        found = {name: self._registry[name] for name in self._registry.names}
        return {name: (model.engine.manifest, model.sha256) for name, model in found.items()}

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Outcome]:
        return [self._one(stack, model) for model in models]

    def _one(self, stack: ZStack, model: str) -> Outcome:
        try:
            return replace(self._registry[model].engine.predict(stack), model=model)
        except StackRefused as refusal:
            return Refusal(stack.info, refusal.what, refusal.fix or "", model)
        except (EngineError, ModelError) as error:
            return Unpredicted(stack.info, str(error), "", model)


class ServedModels:
    """A running server.

    Parameters
    ----------
    endpoint : str
    link : ConnectionSettings, optional
        With keys, where the server wants them.
    timeout_s : float
        Longest wait for the server, and for the predictions of a stack.

    Raises
    ------
    EngineError
        On entering: nobody answers.
    """

    def __init__(
        self, endpoint: str, link: ConnectionSettings | None = None, timeout_s: float = 300.0
    ) -> None:
        self._endpoint, self._link, self._timeout_s = endpoint, link or ConnectionSettings(), timeout_s
        self._wanted = Wanted()
        self._seen: set[StackKey] = set()
        self._open = ExitStack()

    def __enter__(self) -> ServedModels:
        # What the client cannot get predicted it keeps there; the stack is in its own spool anyway.
        self._folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="acq-isl-replay-"))
        self._connected = self._open.enter_context(ExitStack())
        try:
            self._connect()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def manifests(self) -> dict[str, tuple[Manifest, str]]:
        welcome = self._client.engine
        offers = welcome.models if welcome is not None else ()
        return {one.name: (Manifest.from_json(one.manifest), one.model_sha256) for one in offers}

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Outcome]:
        if stack.info.key in self._seen:  # a stack of another run: a client takes each key once
            self._connect()
        self._seen.add(stack.info.key)
        self._wanted = Wanted(models=() if models == _DEFAULT else models)
        for z, pixels in enumerate(stack.pixels):
            self._client.put(Slice(stack.info, z, pixels, stack.captured_s[z]))
        return self._client.drain(self._timeout_s)

    def _connect(self) -> None:
        self._connected.close()
        self._seen.clear()
        settings = ClientSettings(link=self._link, wanted=lambda info: self._wanted)
        client = EngineClient(self._endpoint, spool=Spool(self._folder), settings=settings)
        self._client = self._connected.enter_context(client)
        if not client.wait_connected(min(self._timeout_s, 10.0)):
            raise EngineError(
                f"no engine answers at {self._endpoint}: {client.transport}",
                fix="start it with 'acq-isl serve', or name a model file to predict with here",
            )


def waiting(folder: Path) -> tuple[tuple[Path, ...], Path]:
    """Files that wait in a run's folder or in a spool, oldest first, and where their predictions belong.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}", wanted="a run folder, or a spool")
    if (folder / "spool").is_dir() or not any(folder.glob(f"*{SUFFIX}")):
        return Spool(folder / "spool").list(), folder / STORE
    of_run = folder.resolve().parent
    is_run = (of_run / "experiment.yaml").exists() or (of_run / STORE).exists()
    return Spool(folder).list(), (of_run if is_run else folder) / STORE


def replay(
    folder: Path, models: Models, *, keep: bool = False, tell: Callable[[Replayed], None] | None = None
) -> list[Replayed]:
    """Predict the stacks that wait in a folder.

    Parameters
    ----------
    folder : Path
        A run, or a spool.
    models : Models
    keep : bool
        Leave the stacks in the spool.
    tell : callable, optional
        Told of each stack as it is done.

    Raises
    ------
    StorageError
        There is no such folder, a run still writes there, or the predictions cannot be written.
    """
    paths, store_path = waiting(folder)
    if not paths:
        return []
    colors = {label.name: label.color for one, _ in models.manifests().values() for label in one.labels}
    results = []
    with PredictionStore(store_path, colors, extend=True) as store:
        for path in paths:
            result = _Replay(path, store_path, store, models, keep).run()
            results.append(result)
            if tell is not None:
                tell(result)
    return results


@dataclass(frozen=True, slots=True, eq=False)
class _Replay:
    """One waiting stack."""

    path: Path
    store_path: Path
    store: PredictionStore
    models: Models
    keep: bool

    def run(self) -> Replayed:
        spool = Spool(self.path.parent)
        try:
            spooled = spool.read(self.path)
        except StorageError as error:
            return Replayed(self.path, (str(error),), False)
        if not spooled.complete:
            got = f"only {len(spooled.present)} of {spooled.info.planes} slices are there"
            return Replayed(self.path, (f"not predicted: {got}",), False)
        told, open_ = self._look(spooled)
        stack = ZStack(spooled.info, spooled.pixels, spooled.captured_s)
        for outcome in self.models.predict(stack, tuple(open_)) if open_ else ():
            told[outcome.model] = self._keep(outcome)
        done = all(where is not None for _, where in told.values())
        if done and not self.keep:
            spool.remove(self.path)
        return Replayed(self.path, tuple(words for words, _ in told.values()), done and not self.keep)

    def _look(self, spooled: SpooledStack) -> tuple[dict[str, tuple[str, str | None]], list[str]]:
        """What can be said of each model before anything is predicted, and which are to predict."""
        there = self.models.manifests()
        told: dict[str, tuple[str, str | None]] = {}
        open_ = []
        for model in spooled.models or _DEFAULT:
            name = model or next(iter(there), "")
            if name not in there:
                has = ", ".join(there) or "none"
                told[model] = f"not predicted: it waits for the model {model!r}, and there is {has}", None
                continue
            before = self._before(spooled, model, there[name][1])
            if before is not None:
                told[model] = f"was predicted before: {before}", before
                continue
            told[model] = "not predicted: no answer", None
            open_.append(model)
        return told, open_

    def _before(self, spooled: SpooledStack, model: str, sha256: str) -> str | None:
        """Name in the store of this stack's prediction by this model: a replay may have been cut off."""
        base = field_name(spooled.info.key, model)
        for name in stored(self.store_path):
            if name == base or name.startswith(f"{base}_"):
                kept = load(self.store_path, name)
                same = kept.model == model and repr(kept.info) == repr(spooled.info)
                if same and sha256 and kept.model_sha256 == sha256:
                    return name
        return None

    def _keep(self, outcome: Outcome) -> tuple[str, str | None]:
        """Put a prediction into the store, look that it is there, and say so."""
        if isinstance(outcome, Refusal):
            return f"refused: {outcome.reason}; to fix: {outcome.fix}", None
        if isinstance(outcome, Unpredicted):
            return f"not predicted: {outcome.reason}", None
        name = self.store.write(outcome)
        _check(outcome, load(self.store_path, name), name)
        return f"predicted by {outcome.model_name} ({outcome.model_sha256[:12]}): {name}", name


def _check(prediction: Prediction, back: Prediction, name: str) -> None:
    if not (np.array_equal(back.mean, prediction.mean) and np.array_equal(back.spread, prediction.spread)):
        raise StorageError(
            f"the disk gives back another prediction than was written: {name}",
            fix="check the disk; nothing was removed from the spool",
        )
